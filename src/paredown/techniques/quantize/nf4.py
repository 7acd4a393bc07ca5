"""Weight-only 4-bit NormalFloat with double quantization, the numeric half of QLoRA.

Dettmers et al. 2023, arXiv:2305.14314, section 3; their code is bitsandbytes. Weights that are
normally distributed use 16 levels placed at the normal distribution's quantiles evenly; scales of
blocks of 64 values are themselves held in 8 bits.

Deviations: see `runtime.nf4`. Cost law: 4.127 bits a weight, a 7.75th of fp32; no backend here
multiplies such weights, so they are unpacked in every run and time is not saved. Limits: linears
and ``Conv1D``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from paredown.editing import Editor
from paredown.graph.graph import Graph
from paredown.runtime.nf4 import NF4Linear
from paredown.technique import Change, Choice, Decisions, Lowers, Rewrite, Sites, Stage, Touches
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    matrix,
    paths,
    weighted_sites,
)
from paredown.workload import Workload

BLOCK = 64
"""Values that share a scale (their section 3)."""


@dataclass(frozen=True)
class NF4(Rewrite):
    """Linear weights in 4-bit NormalFloat, blocks of 64 (Dettmers et al. 2023, section 3)."""

    name: ClassVar[str] = "nf4"
    paper: ClassVar[str | None] = "qlora"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_DTYPE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES})
    maturity: ClassVar[Any] = "trial"

    double: Annotated[bool, Choice(True, False), "hold the scales in 8 bits"] = True

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D``, ``path:weight``."""
        return linear_sites(workload, graph)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its packed form; the weights alone decide."""
        edit = Editor(workload)
        for name, path in paths(workload, sites.ok):
            old = edit.model.get_submodule(path)
            edit.swap(path, packed(old, self.at(sites, name).double))
        return edit.change(self, sites.ok, decisions)


def linear_sites(workload: Workload, graph: Graph) -> Sites:
    """Every linear and ``Conv1D`` whose weight is its own."""
    usage = Usage(workload, graph)

    def judge(kind: str, module: nn.Module) -> str | None:
        if kind != "linear":
            return "only linear layers take NormalFloat weights"
        return usage.why_not(module)

    return weighted_sites(workload, judge)


def packed(old: Any, double: bool, rank: int = 0, alpha: float = 16.0) -> NF4Linear:
    """The form of a float linear or ``Conv1D``; an adapter's factors are left to the caller."""
    weight = matrix(old)
    rows, columns = weight.shape
    kind = str(weight.dtype).removeprefix("torch.")
    bias = dtype_name(old.bias)
    new = NF4Linear(columns, rows, BLOCK, double, rank, alpha, bias, kind, weight.device)
    new.fill(weight)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
    return new
