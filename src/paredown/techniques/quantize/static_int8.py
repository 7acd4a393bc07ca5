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
the asymmetric time: minima of interleaved runs on a loaded 2-core AMX machine); channels after
norms are made even first (`smooth`); biases take back the mean error (`bias_correction`). The
paper's own is ``symmetric=False, percentile=100, smooth=False, correct=False``.
Cost law: weights a quarter of fp32; time only where a backend has an integer kernel for the layer.
Limits: transposed convolutions, recurrent layers and embeddings are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

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
from paredown.techniques.quantize import smooth
from paredown.techniques.quantize.bias_correction import mean_errors
from paredown.techniques.quantize.common import (
    Usage,
    affine_range,
    dtype_name,
    kind_of,
    paths,
    symmetric,
    weighted_sites,
)
from paredown.techniques.quantize.observe import input_histograms, input_peaks
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
    smooth: Annotated[bool, "the spread of channels after norms moved into weights"] = True
    correct: Annotated[bool, "biases take back the mean error over the calibration data"] = True

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
        """Norms to smooth, every site's input range, what its bias takes back.

        Three passes over the calibration data at most, one for each.
        """
        at = paths(workload, sites.ok)
        smoothed, tensors = self._smoothed(workload, sites)
        model = workload.model
        divided = {
            p: smooth.ratio(model.get_submodule(norm), smooth.new_of(norm, tensors)).float()
            for norm, linears in smoothed.items()
            for p in linears
        }
        seen = input_histograms(workload, [p for _, p in at], divided)
        inputs: dict[str, list[float]] = {}
        for name, path in at:
            knobs = self.at(sites, name)
            if not torch.isfinite(torch.tensor([seen[path].low, seen[path].high])).all():
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
            low, high = seen[path].range(knobs.percentile)
            inputs[path] = list(affine_range(low, high, symmetric=knobs.symmetric))
        found = Decisions({"inputs": inputs, "smoothed": smoothed}, tensors)
        forms = dict(self._forms(model, workload, sites, found))
        wanted = {p: forms[p] for s, p in at if self._corrects(sites, s, model.get_submodule(p))}
        for path, error in mean_errors(workload, wanted, divided).items() if wanted else ():
            bias = forms[path].get_parameter("bias")
            tensors[f"{path}.bias"] = (bias.detach().double() + error).to(bias.dtype)
        return found

    def _corrects(self, sites: Sites, name: str, layer: Any) -> bool:
        return self.at(sites, name).correct and layer.bias is not None

    def _smoothed(
        self, workload: Workload, sites: Sites
    ) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
        """`smooth.plan` over the sites, by what the calibration data shows."""
        at = {p: self.at(sites, s) for s, p in paths(workload, sites.ok)}

        def sides(first: dict[str, str]) -> dict[str, smooth.Sides]:
            seen = input_peaks(workload, set(first.values()))
            for path, peaks in seen.items():
                if peaks.values is None:
                    raise InputError(f"{path}: no calibration input reaches it; leave the site out")
            return {n: seen[p].sides() for n, p in first.items()}

        return smooth.plan(
            workload,
            [p for p, own in at.items() if own.smooth],
            sides,
            2 ** (self.weight_bits - 1) - 1,
        )

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same shape: unit ranges. Smoothing and biases change values alone."""
        inputs = {p: [1.0, 0] for _, p in paths(workload, sites.ok)}
        return Decisions({"inputs": inputs, "smoothed": {}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Norms with what they were smoothed by, each site as its quantized form.

        A linear behind a smoothed norm that is no site here takes the factors in its own dtype.
        """
        edit = Editor(workload)
        made = dict(self._forms(edit.model, workload, sites, decisions))
        smooth.fold(edit, decisions.values["smoothed"], decisions.tensors, made)
        for path, form in made.items():
            edit.swap(path, form)
        return edit.change(self, sites.ok, decisions)

    def _forms(
        self, model: nn.Module, workload: Workload, sites: Sites, decisions: Decisions
    ) -> Iterator[tuple[str, QuantLinear | QuantConv]]:
        """Every site's path and form; the model's own layers stay as they are."""
        values, tensors = decisions.values, decisions.tensors
        for name, path in paths(workload, sites.ok):
            old: Any = model.get_submodule(path)
            weight, bias = smooth.layer_behind(model, path, values["smoothed"], tensors)
            bias = tensors.get(f"{path}.bias", bias)
            yield path, self.at(sites, name)._form(old, weight, bias, *values["inputs"][path])

    def _form(
        self, old: Any, weight: Tensor, bias: Tensor | None, in_scale: float, in_zero: int
    ) -> QuantLinear | QuantConv:
        """The quantized form of a float linear, ``Conv1D`` or convolution."""
        kind, device = dtype_name(old.bias), weight.device
        if kind_of(old) == "linear":
            rows, columns = weight.shape
            new: Any = QuantLinear(columns, rows, kind, self.per_channel, device)
        else:
            geometry = (old.stride, old.padding, old.dilation, old.groups)
            new = QuantConv(tuple(weight.shape), *geometry, kind, self.per_channel, device)
        packed, scale = symmetric(weight, self.weight_bits, self.per_channel)
        new.weight = nn.Parameter(packed, requires_grad=False)
        new.scale = scale
        new.in_scale = torch.tensor([in_scale], device=device)
        new.in_zero = torch.tensor([in_zero], dtype=torch.int32, device=device)
        if bias is not None:
            new.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return new
