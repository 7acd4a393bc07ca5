"""QLoRA: 4-bit NormalFloat weights that stay, and low-rank adapters trained through them.

Dettmers et al. 2023, arXiv:2305.14314, section 3, equation 5; their code is bitsandbytes with PEFT.
Every linear layer is held in NormalFloat with doubly quantized scales; gradients pass through the
dequantized weights into two thin float factors beside each, which alone are trained (Hu et al.
2021, arXiv:2106.09685). The network then computes with the adapters in place.

Deviations: trained by paredown's own loop, towards the original's outputs unless ``task`` says
otherwise; no dropout on adapters; optimizer states are not paged, since they are of the adapters
alone and small. Cost law: 4.127 bits a weight and ``rank * (in + out)`` floats a layer; two thin
products more. Limits: linears and ``Conv1D`` that gain by it; the norms and the rest stay as they
are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime.nf4 import NF4Linear
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
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.common import matrix, paths
from paredown.techniques.quantize.nf4 import linear_sites, packed
from paredown.techniques.recover import Plan, train
from paredown.workload import Workload, share

FACTORS = ("down", "up")


@dataclass(frozen=True)
class QLoRA(Rewrite):
    """NormalFloat weights with trained low-rank adapters (Dettmers et al. 2023, equation 5)."""

    name: ClassVar[str] = "qlora"
    paper: ClassVar[str | None] = "qlora"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_DTYPE, Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    rank: Annotated[int, Choice(8, 16, 64), "columns of an adapter"] = 8
    alpha: Annotated[float, "an adapter counts alpha / rank times"] = 16.0
    double: Annotated[bool, Choice(True, False), "hold the scales in 8 bits"] = True
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data and dropout"] = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank must be positive, got {self.rank}")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, task=self.task, decay=0.0, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D`` whose packed weight and adapter take less than the weight."""
        found = linear_sites(workload, graph)
        lack = self.missing(workload) or without_gradient(graph)
        refused = dict(found.refused)
        ok: list[str] = []
        for name in found.ok:
            shapes = [matrix(workload.model.get_submodule(p)).shape for _, p in _at(workload, name)]
            large = any(
                self.rank * (rows + columns) > 0.8 * rows * columns for rows, columns in shapes
            )
            if lack is not None:
                refused[name] = lack
            elif large:
                refused[name] = f"an adapter of rank {self.rank} would be as large as its weight"
            else:
                ok.append(name)
        return Sites(tuple(ok), refused)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train the adapters of a copy; their factors are the decision, with the steps granted."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        model = self.rewrite(workload, sites, Decisions()).workload.own().model
        adapted = [m for m in model.modules() if isinstance(m, NF4Linear)]
        model.requires_grad_(False)
        for form in adapted:
            assert form.down is not None
            assert form.up is not None
            nn.init.kaiming_uniform_(form.down, a=math.sqrt(5))
            nn.init.zeros_(form.up)
            form.down.requires_grad_(True)
            form.up.requires_grad_(True)
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            done = train(model, teacher, data, self._plan(), evaluate=workload.evaluate)
            values = done.values()
        factors = {
            f"{p}.{n}": model.get_parameter(f"{p}.{n}").detach().clone()
            for _, p in paths(workload, sites.ok)
            for n in FACTORS
        }
        return Decisions(values, factors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Shapes follow from the rank."""
        return Decisions({"steps": self.steps})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its packed form with the trained factors."""
        edit = Editor(workload)
        for name, path in paths(workload, sites.ok):
            own = self.at(sites, name)
            new = packed(edit.model.get_submodule(path), own.double, own.rank, own.alpha)
            for factor in FACTORS:
                if (value := decisions.tensors.get(f"{path}.{factor}")) is not None:
                    setattr(new, factor, nn.Parameter(value))
            edit.swap(path, new)
        v = decisions.values
        notes: list[str] = []
        if "best_score" in v:
            notes.append(
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            )
        return edit.change(self, sites.ok, decisions, notes=notes)


def _at(workload: Workload, name: str) -> list[tuple[str, str]]:
    return paths(workload, [name])
