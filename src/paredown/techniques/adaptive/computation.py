"""Adaptive computation modules in place of trained feed-forward layers (ACM; Wojcik et al. 2023,
arXiv:2312.10193; official code bartwojcik/adaptive_computation_modules).

The hidden units of each feed-forward layer are dealt out to ``learners`` small MLPs in an order,
and a gate chooses for each token how many of them run. Three phases: learners towards the layer's
output, every prefix of them, layer by layer; gates towards the fewest learners after which one more
adds little; all end to end, with the mean load held at ``target``.

Cost law: a layer costs its gate and the learners that tokens chose, a distribution over inputs with
mean ``target`` times the layer.

Deviations: feed-forward layers alone (the authors replace attention's projections too); learners
begin as slices of the trained layer, the units that matter most first, and the layer's output bias
stays (theirs begin at random without one): all learners together are the layer itself; phase 3 also
distils from the original and weighs the cost term by 2.0 instead of 0.1, because it has hundreds of
steps where they have 97 epochs; before and after it all gates are tilted by one number so that the
mean load of calibration inputs is the target; the gate has ReLUs between its three linears. Limits:
modules of two linears with GELU, ReLU or SiLU between; a later recovery trains the gates without
their budget; eager alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph, Node
from paredown.graph.varying import forget
from paredown.quality import agreement, judge
from paredown.runtime.adaptive_mlp import AdaptiveMlp
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Range,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.adaptive.acm_training import Load, Seen, learn_gates, learn_layers, slices
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.common import FLOATS, dtype_name, gather, paths
from paredown.techniques.recover import Plan, train
from paredown.workload import Workload, share

ROLE = "effort"
PRODUCTS = ("aten::addmm", "aten::mm", "aten::linear", "aten::bmm")
TOLERANCE = 0.02
"""A state of phase 3 counts as within the budget up to so much above it."""
TILT, HALVINGS, TILTED = 20.0, 14, 8
"""Largest tilt of a gate's logits per learner, how often its interval is halved, and on how many
calibration items."""


@dataclass(frozen=True)
class AdaptiveComputation(Rewrite):
    """Each token runs as many parts of a feed-forward layer as it needs (Wojcik et al. 2023)."""

    name: ClassVar[str] = "adaptive-computation"
    paper: ClassVar[str | None] = "acm"
    family: ClassVar[str] = "adaptive"
    stage: ClassVar[Stage] = Stage.RANK
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.STRUCTURE, Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.TIME})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    target: Annotated[float, Choice(0.75, 0.6, 0.4, 0.25), "mean share of learners run"] = 0.6
    learners: Annotated[int, Choice(4, 8), "parts of each layer"] = 4
    steps: Annotated[int, Choice(100, 300, 1000), "steps of the last phase"] = 300
    layer_steps: Annotated[int, "steps of the first and of the second phase"] = 100
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak rate of the last phase"] = 1e-3
    cost: Annotated[float, "weight of the distance to the target"] = 2.0
    seed: Annotated[int, "order of the data"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.target <= 1 or self.learners < 1:
            raise InputError("target must lie in (0, 1], learners be at least 1")
        if self.layer_steps < 0 or self.cost < 0:
            raise InputError("layer_steps and cost must be at least 0")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, temperature=1.0, task=0.5, checks=8, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Modules of two linears with an activation between, ``path:effort``."""
        lack = self.missing(workload) or without_gradient(graph)
        if lack is None and workload.run != "forward":
            lack = f"a run of {workload.run!r} is not trained here"
        under = _by_module(graph)

        def look(path: str, module: nn.Module) -> str | bool | None:
            found = _layer(module, under.get(path, [])) if path else None
            if found is None:
                return False
            one, _, _ = found
            if one.out_features < self.learners:
                return f"{one.out_features} hidden units make no {self.learners} learners"
            if one.weight.dtype not in FLOATS:
                return f"its weights are {dtype_name(one.weight)}"
            return lack

        return gather(workload, ROLE, look)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; everything that was trained is the decision, and the loads found."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        work = workload.own()
        model = work.model.eval()
        at = [p for _, p in paths(workload, sites.ok)]
        forms = self._forms(workload, capture(workload), at)
        forget(model)
        seen = Seen(model, at)
        with torch.no_grad():
            model(*workload.inputs, **workload.kwargs)
        seen.close()
        idle = next((path for path in at if path not in seen.pairs), None)
        if idle is not None:
            raise NotApplicable(f"{idle} does not run on the example: exits come after {self.name}")
        for path, new in forms.items():
            one, two = _linears(model.get_submodule(path))
            slices((one, two), new, seen.pairs[path][0].flatten(0, -2))
            for layer in new.gate:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        with torch.enable_grad():
            learn_layers(model, forms, data, self.layer_steps, self.seed)
            learn_gates(model, forms, data, self.layer_steps, self.seed + 1)
        for path, new in forms.items():
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new.eval())
        self._tilt(work, forms)
        values: dict[str, Any] = {"steps": 0}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            companion = Load(list(forms.values()), self.target, self.cost)
            done = train(
                model,
                teacher,
                data,
                self._plan(),
                evaluate=lambda m: self._worth(workload, m, forms),
                companion=companion,
            )
            values = done.values()
            self._tilt(work, forms)
        model.eval()
        loads = self._loads(work, forms)
        before = dict(workload.model.named_parameters())
        tensors = {
            name: t.detach().clone()
            for name, t in (*model.named_parameters(), *model.named_buffers())
            if name not in before or not torch.equal(t, before[name])
        }
        return Decisions({**values, "loads": loads}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Loads that fall evenly to the target: the first learner runs for most tokens."""
        return Decisions({"loads": {}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap the layers, then put in everything that was trained."""
        editor = Editor(workload)
        at = [p for _, p in paths(workload, sites.ok)]
        loads: dict[str, list[float]] = decisions.values["loads"]
        for path, new in self._forms(workload, None, at, loads).items():
            editor.swap(path, new)
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value, tied=True)
        notes: list[str] = []
        if loads:
            mean = float(np.mean(list(loads.values())))
            notes.append(f"{mean:.0%} of the learners run, {self.target:.0%} were asked for")
        return editor.change(self, sites.ok, decisions, notes=notes)

    def _forms(
        self,
        workload: Workload,
        graph: Graph | None,
        at: list[str],
        loads: dict[str, list[float]] | None = None,
    ) -> dict[str, AdaptiveMlp]:
        """The forms of the layers at these paths, weights still to be filled in."""
        under = _by_module(capture(workload) if graph is None else graph)
        made: dict[str, AdaptiveMlp] = {}
        for path in at:
            found = _layer(workload.model.get_submodule(path), under[path])
            assert found is not None, f"{path} was a site"
            one, two, act = found
            hidden = -(-one.out_features // self.learners)
            parts = range(self.learners)
            falls = [min(1.0, 2 * self.target * (1 - n / self.learners)) for n in parts]
            made[path] = AdaptiveMlp(
                one.in_features,
                two.out_features,
                hidden,
                self.learners,
                act,
                (loads or {}).get(path, falls),
                str(one.weight.dtype).removeprefix("torch."),
                one.weight.device,
            )
        return made

    def _worth(self, workload: Workload, model: nn.Module, forms: dict[str, AdaptiveMlp]) -> float:
        """The judge's mean, less ten times what the load is above its target."""
        for form in forms.values():
            form.counts = [0] * (form.learners + 1)
        if workload.evaluate is not None:
            score = float(np.mean(judge(workload.evaluate, model))) / (workload.scale or 1.0)
        else:
            with torch.inference_mode():
                each = [
                    agreement(workload.model(*a, **k), model(*a, **k))
                    for a, k in workload.calibration_inputs()
                ]
            score = float(np.mean(each))
        load = float(np.mean([_load(form) for form in forms.values()]))
        for form in forms.values():
            form.counts = None
        return score - 10 * max(0.0, load - self.target - TOLERANCE)

    def _tilt(self, work: Workload, forms: dict[str, AdaptiveMlp]) -> None:
        """Move every gate towards fewer or more learners by one number for all, until the mean load
        of the calibration inputs is the target.
        """
        work.model.eval()
        calls = list(work.calibration_inputs())[:TILTED]
        biases: list[Any] = [form.gate[-1].bias for form in forms.values()]
        kept = [b.detach().clone() for b in biases]

        def load(tilt: float) -> float:
            for form, bias, was in zip(forms.values(), biases, kept, strict=True):
                form.counts = [0] * (form.learners + 1)
                bias.copy_(was + tilt * torch.arange(len(was), dtype=was.dtype))
            for args, kwargs in calls:
                work.model(*args, **kwargs)
            found = float(np.mean([_load(form) for form in forms.values()]))
            for form in forms.values():
                form.counts = None
            return found

        low, high = -TILT, TILT
        with torch.no_grad():
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if load(middle) < self.target else (low, middle)
            load(high if load(low) < self.target - TOLERANCE else low)

    def _loads(self, work: Workload, forms: dict[str, AdaptiveMlp]) -> dict[str, list[float]]:
        """Shares of tokens that each learner runs for, over the population."""
        for form in forms.values():
            form.counts = [0] * (form.learners + 1)
        with torch.inference_mode():
            for args, kwargs in work.population_inputs():
                work.model(*args, **kwargs)
        found: dict[str, list[float]] = {}
        for path, form in forms.items():
            counts = np.array(form.counts or [0])
            form.counts = None
            found[path] = (counts[::-1].cumsum()[::-1][1:] / max(1, counts.sum())).tolist()
        return found


def _load(form: AdaptiveMlp) -> float:
    counts = np.array(form.counts or [0])
    return float((counts * np.arange(len(counts))).sum() / max(1, counts.sum()) / form.learners)


def _by_module(graph: Graph) -> dict[str, list[Node]]:
    """Work nodes at or under every module."""
    found: dict[str, list[Node]] = {}
    for node in graph.work_nodes():
        path = node.module
        while path:
            found.setdefault(path, []).append(node)
            path = path.rpartition(".")[0]
    return found


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _layer(module: nn.Module, nodes: list[Node]) -> tuple[nn.Linear, nn.Linear, str] | None:
    """The two linears and the activation of a feed-forward module; None for any other."""
    linears = _linears(module)
    ops = [n.op for n in nodes]
    if isinstance(module, nn.Linear) or len(linears) != 2 or len(ops) != 3:
        return None
    act = {"aten::gelu": "gelu", "aten::relu": "relu", "aten::silu": "silu"}.get(ops[1])
    if act is None or ops[0] not in PRODUCTS or ops[2] not in PRODUCTS:
        return None
    if act == "gelu" and nodes[1].kwargs.get("approximate", "none") == "tanh":
        act = "gelu_tanh"
    if linears[0].out_features != linears[1].in_features:
        return None
    return linears[0], linears[1], act
