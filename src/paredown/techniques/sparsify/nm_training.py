"""Training whose products are N:M sparse forward and backward (BDWP, Fang et al. 2023,
arXiv:2309.13015), which leaves an N:M sparse network; see `nm_products`.

Cost law: of a layer's three products in a step two shrink to N/M: (2 N/M + 1) / 3 of the
multiply-accumulates, 0.5 at 2:8 and 0.67 at 2:4, on hardware that skips zeros; here they are
counted, not saved. The trained weights are N:M along the inputs: as in `one_shot` the file is
smaller, which alone is claimed, and the native engine's kernel of single weights pays in float32.

Deviations: training starts from the network as it is and distils from the original like every
training here (`recover.Plan`; ``task=1`` is the paper's plain loss); SR-STE's decay is a knob (2e-4
is SR-STE's own, 0 is plain straight-through). Limits: linears and 2-D convolutions of one group
whose inputs and outputs M divides; the first layer stays dense, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
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
from paredown.techniques.gradients import untrainable
from paredown.techniques.quantize.common import Usage, paths, weighted_sites
from paredown.techniques.recover import Plan, snapshot, train
from paredown.techniques.sparsify import nm_products, pruners
from paredown.workload import Workload, share

DIRECTIONS = ("both", "forward", "backward")


@dataclass(frozen=True)
class NMTraining(Rewrite):
    """Train with N:M sparse products in both directions (BDWP, Fang et al. 2023)."""

    name: ClassVar[str] = "nm-training"
    paper: ClassVar[str | None] = "bdwp-sat"
    family: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.SPARSITY
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    pattern: Annotated[str, Choice("2:4", "2:8", "1:4", "4:8"), "n:m, n kept of every m"] = "2:4"
    direction: Annotated[str, Choice(*DIRECTIONS), "which products of a step are sparse"] = "both"
    decay: Annotated[float, Choice(0.0, 2e-4), "SR-STE's pull of pruned weights to zero"] = 2e-4
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data and dropout"] = 0

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """The pattern that GPUs know and the paper's."""
        return {"2:4": {}, "2:8": {"pattern": "2:8"}}

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        self._nm()
        if self.direction not in DIRECTIONS:
            raise InputError(f"direction {self.direction!r}: {', '.join(DIRECTIONS)}")
        if self.decay < 0:
            raise InputError(f"decay must be at least 0, got {self.decay}")
        self._plan()

    def _nm(self) -> tuple[int, int]:
        try:
            found = pruners.kept_of(self.pattern)
        except ValueError as e:
            raise InputError(str(e)) from None
        if not isinstance(found, tuple):
            raise InputError(f"pattern {self.pattern!r}: n:m, 2:4 for example")
        return found

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, task=self.task, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ungrouped 2-D convolutions, ``path:weight``, but for the first layer."""
        if (why := untrainable(workload, graph)) is not None:
            return Sites((), {":weights": why})
        usage, m = Usage(workload, graph), self._nm()[1]
        first = first_layer(workload, graph)

        def judge(_: str, module: nn.Module) -> str | None:
            if module is first:
                return "the first layer is trained dense"
            return nm_products.why_not(module, m) or usage.why_not(module)

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy with sparse products; its weights, pruned along the inputs, remain."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        (n, m), found = self._nm(), [p for _, p in paths(workload, sites.ok)]
        model = workload.own().model
        direction: Any = self.direction
        nm_products.convert(model, found, n, m, direction, self.decay)
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            done = train(model, teacher, data, self._plan(), evaluate=workload.evaluate)
            values = done.values()
        before = snapshot(workload.model)
        after = snapshot(model)
        for path in found:
            weight = after[f"{path}.weight"]
            after[f"{path}.weight"] = torch.where(nm_products.kept(weight, n, m, 1), weight, 0.0)
        tensors: dict[str, Tensor] = {
            k: t for k, t in after.items() if not torch.equal(t, before[k])
        }
        return Decisions(values, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Nothing changes shape."""
        return Decisions({"steps": self.steps})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the trained tensors in and mark the sites, so that training keeps their zeros."""
        editor = Editor(workload)
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value, tied=True)
        for _, path in paths(workload, sites.ok):
            editor.attach(path, "keep_zeros")
        v, (n, m) = decisions.values, self._nm()
        notes = [f"a step takes {(2 * n / m + 1) / 3:.0%} of these layers' MACs where zeros skip"]
        if "best_score" in v:
            notes.append(
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            )
        return editor.change(self, sites.ok, decisions, notes=notes)


def first_layer(workload: Workload, graph: Graph) -> nn.Module | None:
    """The module of the first product in a run."""
    node = next((n for n in graph.nodes if n.macs), None)
    return None if node is None else workload.model.get_submodule(node.module)
