"""Dynamic int8 linears: int8 weights ahead of time, activation ranges from each input at run time.

The affine mapping is Krishnamoorthi's (2018, arXiv:1806.08342, section 2.1); ranges taken at run
time need no calibration data and follow each input, at the price of one pass over every activation.
Channels after norms are made even first (SmoothQuant, see `smooth`), by what the norms' own weights
let expect of them.
Cost law: weights a quarter of fp32; pays where the weight traffic dominates (small batches of long
linears) and the backend has a fused kernel. Limits: linears and Hugging Face's ``Conv1D`` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from paredown.editing import Editor
from paredown.graph.graph import Graph
from paredown.runtime.quantized import DynamicLinear
from paredown.technique import Change, Decisions, Lowers, Rewrite, Sites, Stage, Touches
from paredown.techniques.quantize import smooth
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    paths,
    symmetric,
    weighted_sites,
)
from paredown.workload import Workload


@dataclass(frozen=True)
class DynamicInt8(Rewrite):
    """Int8 linears, activation ranges taken at run time (Krishnamoorthi 2018, section 2.1)."""

    name: ClassVar[str] = "dynamic-int8"
    paper: ClassVar[str | None] = "quant-whitepaper"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    maturity: ClassVar[Any] = "trial"
    onnx: ClassVar[bool] = True

    smooth: Annotated[bool, "the spread of channels after norms moved into weights"] = True

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D``, ``path:weight``."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            if kind != "linear":
                return "only linear layers take their range at run time"
            return usage.why_not(module)

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Norms to smooth, from the weights alone."""
        at = [p for s, p in paths(workload, sites.ok) if self.at(sites, s).smooth]

        def sides(first: dict[str, str]) -> dict[str, smooth.Sides]:
            return {n: smooth.sides_of(workload.model.get_submodule(n)) for n in first}

        smoothed, tensors = smooth.plan(workload, at, sides)
        return Decisions({"smoothed": smoothed}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Nothing smoothed: that changes values alone."""
        return Decisions({"smoothed": {}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its form; the weights alone decide."""
        edit = Editor(workload)
        smoothed, tensors = decisions.values.get("smoothed", {}), decisions.tensors
        at = [p for _, p in paths(workload, sites.ok)]
        layers = {p: smooth.layer_behind(edit.model, p, smoothed, tensors) for p in at}
        smooth.fold(edit, smoothed, tensors, at)
        for path, (weight, bias) in layers.items():
            old: Any = edit.model.get_submodule(path)
            rows, columns = weight.shape
            new = DynamicLinear(columns, rows, dtype_name(old.bias), weight.device)
            packed, new.scale = symmetric(weight, 8, per_channel=True)
            new.weight = nn.Parameter(packed, requires_grad=False)
            if bias is not None:
                new.bias = nn.Parameter(bias.detach(), requires_grad=False)
            edit.swap(path, new)
        return edit.change(self, sites.ok, decisions)
