"""Post-training static int8: integer convolutions and linears.

Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference: A whitepaper",
arXiv:1806.08342, sections 2 and 3.1.

Weights become symmetric int8 with one scale per output channel (zero point 0, range +-127);
activations per-tensor asymmetric uint8 over a range fixed from calibration data, widened to hold 0
so that zero padding and ReLU stay exact. The layer then is an integer product with an int32 sum.

Deviations: activation ranges are percentiles of one histogram over all calibration data (the paper
keeps moving averages of minima and maxima); bias stays float, as CPU runtimes take it; ranges of
both signs are ``symmetric`` unless asked otherwise, at zero point 128, because OpenVINO's CPU
plugin then corrects for no zero point (ConvNeXt-tiny and ViT-Ti at 96 pixels ran in 0.82 to 0.86 of
the asymmetric time: minima of interleaved runs on a loaded 2-core AMX machine). The paper's own is
``symmetric=False, percentile=100``.
Cost law: weights a quarter of fp32; time only where a backend has an integer kernel for the layer.
Limits: transposed convolutions, recurrent layers and embeddings are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.quantized import QuantConv, QuantLinear
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.quantize.common import (
    Usage,
    affine_range,
    dtype_name,
    kind_of,
    matrix,
    paths,
    symmetric,
    weighted_sites,
)
from paredown.techniques.quantize.observe import input_histograms
from paredown.workload import Workload

_NOT_THESE = {
    "embedding": "an embedding multiplies nothing: weight-only packs it",
    "conv_transpose": "transposed convolutions have no integer form here",
    "recurrent": "recurrent layers have no integer form here",
}


@dataclass(frozen=True)
class StaticInt8(Rewrite):
    """Post-training static int8, per-channel weights (Krishnamoorthi 2018, arXiv:1806.08342)."""

    name: ClassVar[str] = "static-int8"
    paper: ClassVar[str | None] = "quant-whitepaper"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    maturity: ClassVar[Any] = "stable"
    onnx: ClassVar[bool] = True

    percentile: Annotated[float, Choice(100.0, 99.99, 99.9), "percent kept at either end"] = 99.99
    symmetric: Annotated[
        bool, Choice(True, False), "activations of both signs in a range symmetric around 0"
    ] = True
    per_channel: Annotated[bool, "one weight scale per output channel, else one per tensor"] = True
    weight_bits: Annotated[int, "8, or 4 for study: a 4-bit weight still takes a byte here"] = 8

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """The default, and the whole range kept."""
        return {"on": {}, "whole range": {"percentile": 100.0}}

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise InputError(f"percentile must lie in (50, 100], got {self.percentile}")
        if self.weight_bits not in (4, 8):
            raise InputError(f"weight_bits must be 4 or 8, got {self.weight_bits}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Convolutions and linears, ``path:weight``."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            if kind in _NOT_THESE:
                return _NOT_THESE[kind]
            if getattr(module, "padding_mode", "zeros") != "zeros":
                return f"padding_mode {module.padding_mode!r} is not zero padding"
            return usage.why_not(module)

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Scale and zero point of every site's input, from one pass over the calibration data."""
        at = paths(workload, sites.ok)
        seen = input_histograms(workload, [p for _, p in at])
        inputs: dict[str, list[float]] = {}
        for name, path in at:
            knobs = self.at(sites, name)
            if not torch.isfinite(torch.tensor([seen[path].low, seen[path].high])).all():
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
            low, high = seen[path].range(knobs.percentile)
            inputs[path] = list(affine_range(low, high, symmetric=knobs.symmetric))
        return Decisions({"inputs": inputs})

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same shape: unit ranges."""
        return Decisions({"inputs": {p: [1.0, 0] for _, p in paths(workload, sites.ok)}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its quantized form."""
        edit = Editor(workload)
        for name, path in paths(workload, sites.ok):
            old: Any = edit.model.get_submodule(path)
            edit.swap(path, self.at(sites, name).form(old, *decisions.values["inputs"][path]))
        return edit.change(self, sites.ok, decisions)

    def form(self, old: Any, in_scale: float, in_zero: int) -> QuantLinear | QuantConv:
        """The quantized form of a float linear, ``Conv1D`` or convolution."""
        weight = matrix(old)
        bias, device = dtype_name(old.bias), weight.device
        if kind_of(old) == "linear":
            rows, columns = weight.shape
            new: Any = QuantLinear(columns, rows, bias, self.per_channel, device)
        else:
            geometry = (old.stride, old.padding, old.dilation, old.groups)
            new = QuantConv(tuple(weight.shape), *geometry, bias, self.per_channel, device)
        packed, scale = symmetric(weight, self.weight_bits, self.per_channel)
        new.weight = nn.Parameter(packed, requires_grad=False)
        new.scale = scale
        new.in_scale = torch.tensor([in_scale], device=device)
        new.in_zero = torch.tensor([in_zero], dtype=torch.int32, device=device)
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        return new
