"""One small technique of each other kind, through sites, preview, apply, save and load.

Rewrites have the conformance suite; these four show that the protocol carries a run-time policy, a
training plan, a placement and a choice of data as well.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import pytest
import torch
from torch import nn

from paredown.changes import load_changes, save_changes
from paredown.editing import Editor, replay
from paredown.graph.capture import capture
from paredown.runtime import forms
from paredown.technique import (
    Choice,
    Decisions,
    Partition,
    Plan,
    Policy,
    Selection,
    Sites,
    Touches,
)
from paredown.testing import build


def exit_early(module, config):
    """Skip the module when its input hardly moves (a hook of the closed list, for these tests)."""

    def hook(m, args, out):
        return torch.where(args[0].std() < config["quiet"], args[0], out)

    module.register_forward_hook(hook)


@dataclass(frozen=True)
class EarlyExit(Policy):
    """Blocks that map a shape to itself may be skipped at run time."""

    name = "early-exit"
    touches = frozenset({Touches.EXIT})
    hooks = frozenset({"exit"})
    quiet: Annotated[float, Choice(0.1, 1e9), "spread below which a block is skipped"] = 1e9

    def sites(self, workload, graph):
        found = [p for p, cls in graph.modules.items() if cls in ("EncoderBlock", "DecoderLayer")]
        return Sites(tuple(f"{p}:exit" for p in found))

    def rewrite(self, workload, sites, decisions):
        editor = Editor(workload)
        for site in sites.ok:
            editor.attach(site.partition(":")[0], "exit_early", {"quiet": self.quiet})
        return editor.change(self, sites.ok, decisions)


@dataclass(frozen=True)
class FrozenLayers(Plan):
    """Only the chosen modules are trained: the rest needs neither gradient nor optimizer state."""

    name = "frozen-layers"
    touches = frozenset({Touches.TRAIN_STEP})

    def sites(self, workload, graph):
        return Sites(
            tuple(
                f"{p}:train"
                for p, m in workload.model.named_modules()
                if p and list(m.parameters(recurse=False))
            )
        )

    def decide(self, workload, sites):
        keep = {s.partition(":")[0] for s in sites.ok}
        names = [
            n for n, _ in workload.model.named_parameters() if n.rpartition(".")[0] not in keep
        ]
        return Decisions({"frozen": names})

    def rewrite(self, workload, sites, decisions):
        change = Editor(workload).change(self, sites.ok, decisions)
        for name in decisions.values["frozen"]:
            change.workload.model.get_parameter(name).requires_grad_(False)
        return change


@dataclass(frozen=True)
class TwoStages(Partition):
    """The network cut in two named stages at one module, on two devices."""

    name = "two-stages"
    touches = frozenset({Touches.PLACEMENT})

    def sites(self, workload, graph):
        return Sites(tuple(f"{p}:stage" for p, _ in workload.model.named_children()))

    def decide(self, workload, sites):
        names = [s.partition(":")[0] for s in sites.ok]
        half = len(names) // 2
        return Decisions({"stages": {"near": names[:half], "far": names[half:]}})

    def rewrite(self, workload, sites, decisions):
        stages = decisions.values["stages"]
        notes = [f"{stage}: {', '.join(paths)}" for stage, paths in stages.items()]
        return Editor(workload).change(self, sites.ok, decisions, notes=notes)


@dataclass(frozen=True)
class EveryOther(Selection):
    """A share of the training batches, evenly spaced."""

    name = "every-other"
    touches = frozenset({Touches.DATA})
    share: Annotated[float, Choice(0.25, 0.5), "batches kept"] = 0.5

    def sites(self, workload, graph):
        lack = self.missing(workload) or (None if workload.training else "no training data")
        return Sites((), {":data": lack}) if lack else Sites((":data",))

    def decide(self, workload, sites):
        n = sum(1 for _ in workload.training.batches())
        return Decisions({"kept": list(range(0, n, round(1 / self.share)))})

    def rewrite(self, workload, sites, decisions):
        change = Editor(workload).change(self, sites.ok, decisions)
        data, kept = workload.training, set(decisions.values["kept"])

        def fewer():
            return (b for i, b in enumerate(data.batches()) if i in kept)

        change.workload.training = replace(data, batches=fewer)
        return change


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(forms.HOOKS, "exit_early", exit_early)


def through(technique, tmp_path, network="vit", patterns=("*",)):
    """Sites, preview, apply, save, load, carry out again; returns both changes and the graphs."""
    workload = build(network)
    graph = capture(workload)
    sites = technique.sites(workload, graph).only(patterns)
    preview = technique.preview(graph, sites).graph
    change = technique.apply(workload, sites)
    change.technique = technique.name
    after = capture(change.workload)
    assert [n.op for n in preview.nodes] == [n.op for n in after.nodes]
    save_changes(tmp_path, [change])
    (record,) = load_changes(tmp_path)
    assert record.touched == {s: tuple(t.value for t in technique.touches) for s in sites.ok}
    again = technique.rewrite(build(network), sites, record.decisions)
    rebuilt = replay(build(network).model, record.edits)
    rebuilt.load_state_dict(change.workload.model.state_dict())
    assert torch.equal(rebuilt(*workload.inputs), change.workload.call())
    return workload, change, again, graph, after


def test_a_policy_installs_run_time_hooks(tmp_path):
    workload, change, again, graph, after = through(EarlyExit(), tmp_path)
    assert len(after.nodes) > len(graph.nodes)
    model = workload.model
    x = model.embed(workload.inputs[0]).flatten(2).transpose(1, 2) + model.place
    skipped = model.head(model.norm(x).mean(1))
    torch.testing.assert_close(change.workload.call(), skipped)
    assert torch.equal(again.workload.call(), change.workload.call())
    assert not torch.equal(workload.call(), skipped)


def test_a_plan_changes_what_is_trained(tmp_path):
    workload, change, again, *_ = through(FrozenLayers(), tmp_path, patterns=("head",))
    trained = [n for n, p in change.workload.model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    assert [n for n, p in again.workload.model.named_parameters() if p.requires_grad] == trained
    assert all(p.requires_grad for p in workload.model.parameters())
    (inputs, target), *_ = workload.training.batches()
    workload.training.loss(change.workload.model(*inputs), target).backward()
    assert change.workload.model.embed.weight.grad is None
    assert change.workload.model.head.weight.grad is not None


def test_a_partition_names_stages(tmp_path):
    workload, change, again, *_ = through(TwoStages(), tmp_path)
    names = [n for n, _ in workload.model.named_children()]
    stages = again.decisions.values["stages"]
    assert stages["near"] + stages["far"] == names
    assert change.notes[0] == "near: embed, blocks"


def test_a_selection_keeps_less_of_the_data(tmp_path):
    workload, change, again, *_ = through(EveryOther(), tmp_path, "cnn")
    every = list(workload.training.batches())
    for c in (change, again):
        kept = list(c.workload.training.batches())
        assert len(kept) == 2
        assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(kept, every[::2], strict=True))
    workload.training = None
    assert EveryOther().sites(workload, capture(workload)).refused == {":data": "no training data"}


def test_kinds_and_stages_say_what_they_are():
    assert [t.kind for t in (EarlyExit, FrozenLayers, TwoStages, EveryOther)] == [
        "policy",
        "plan",
        "partition",
        "selection",
    ]
    assert EarlyExit.knobs()[0].space == Choice(0.1, 1e9)
    assert isinstance(build("cnn").model, nn.Module)
