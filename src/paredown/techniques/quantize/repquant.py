"""RepQuant: a transformer's linears and attention in 4 bits, after training, by scale
reparameterisation.

Li et al. 2024, arXiv:2402.05628, building on RepQ-ViT (Li et al. 2023, arXiv:2212.08254, sections
3.2 and 3.3; official code zkkli/RepQ-ViT). Calibrate with quantizers that fit, run with simple ones
that compute the same. After a layer norm every channel has a range of its own; folding the ratios
of scales and the offsets into the norm's affine map and, inverted, into the next weights leaves one
range for the layer and the very same codes. Attention weights are coded by powers of sqrt(2), which
are shifts and a parity factor. Each end of a channel's range is trained, weights are reconstructed
on coded inputs.

Deviations: the layer's zero point is rounded (their code keeps a fraction), so that codes are equal
bit for bit; ranges are searched over shares of percentiles too; reconstruction is GPTQ's closed
form on the float network's inputs, where the paper's is trained; biases take up the mean error; a
norm without a bias folds scales alone, over symmetric ranges. A norm that something else than
linears reads keeps one range (a note says so). The patch embedding stays in float, theirs is in 8
bits.
Cost law: a weight takes half a byte and one scale and zero point a row; multiply-accumulates stay
as they were. No backend here multiplies 4-bit codes of activations, so both sides are dequantized
in every run and attention runs in the open: it saves size, not time. Limits: linears, ``Conv1D``
and attention through torch's ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.forms_low_bit import LowBitLinear
from paredown.runtime.ops import pack_int4
from paredown.runtime.quantized_attention import CHILD, WEIGHTS, QuantizedAttention
from paredown.runtime.tokens import ReducedBlock
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
from paredown.techniques.quantize.attention_flow import attention_histograms, attentions
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    matrix,
    paths,
    site,
    weighted_sites,
)
from paredown.techniques.quantize.norm_flow import Fed, norms
from paredown.techniques.quantize.observe import Histogram, Rows, input_rows
from paredown.techniques.quantize.ranges import (
    Channels,
    channel_ranges,
    power_of_two_ranges,
    tensor_range,
    trained_ranges,
    weight_scale,
)
from paredown.techniques.quantize.reconstruct import back, reconstructed
from paredown.techniques.quantize.weight_only import grouped
from paredown.workload import Workload

NORMS = ("channel", "power-of-two", "layer")


@dataclass(frozen=True)
class RepQuant(Rewrite):
    """Linears and attention of a transformer in 4 bits by scale reparameterisation (Li et al.
    2024).
    """

    name: ClassVar[str] = "repquant"
    paper: ClassVar[str | None] = "repquant"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE, Touches.ATTENTION}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})
    maturity: ClassVar[Any] = "trial"

    weight_bits: Annotated[int, Choice(4, 8), "bits of a weight (2 to 8; stored in 4 or 8)"] = 4
    activation_bits: Annotated[int, Choice(4, 6, 8), "bits of what products read (2 to 8)"] = 4
    norms: Annotated[
        str, Choice(*NORMS), "ranges after norms: by channel, by powers of two (FQ-ViT), one"
    ] = "channel"
    attention: Annotated[
        str, Choice(*WEIGHTS), "quantizer of attention weights; float leaves attention alone"
    ] = "log-sqrt2"
    search: Annotated[bool, "ranges of least squared error, else from least to largest value"] = (
        True
    )
    clip_steps: Annotated[int, Choice(40, 0), "steps that train the ends of channels' ranges"] = 40
    reconstruct: Annotated[bool, Choice(True, False), "weights fitted to coded inputs"] = True

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Four bits on both sides, and 8-bit activations with attention left alone."""
        return {"W4A4": {}, "W4A8": {"activation_bits": 8, "attention": "float"}}

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise InputError(f"{name} must lie in 2 .. 8, got {getattr(self, name)}")
        if self.norms not in NORMS:
            raise InputError(f"norms {self.norms!r}: one of {', '.join(NORMS)}")
        if self.attention not in WEIGHTS:
            raise InputError(f"attention {self.attention!r}: one of {', '.join(WEIGHTS)}")
        if self.clip_steps < 0:
            raise InputError(f"clip_steps must be at least 0, got {self.clip_steps}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D``, ``path:weight``, and attentions, ``path:attention``."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            if kind != "linear":
                return "only linear layers take codes on both sides here"
            return usage.why_not(module)

        found = weighted_sites(workload, judge)
        ok, refused = list(found.ok), dict(found.refused)
        model = workload.model
        reduced = [p for p, m in model.named_modules() if isinstance(m, ReducedBlock)]
        for path, why in attentions(workload, graph).items():
            name = site(path, workload, "attention")
            module = model.get_submodule(path)
            if self.attention == "float":
                why = "attention=float leaves it alone"
            elif isinstance(module, QuantizedAttention):
                why = "its products are over codes already"
            elif any(path.startswith(f"{p}.") or path == p for p in reduced):
                why = "its block gives tokens up and answers its attention itself"
            if why is None:
                ok.append(name)
            else:
                refused[name] = why
        return Sites(tuple(ok), refused, found.overrides)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Ranges, folds and codes from one pass over the calibration data and one over rows."""
        from paredown.graph.capture import capture

        linears = {p: s for s, p in _linears(workload, sites)}
        seen = input_rows(workload, linears)
        for path, name in linears.items():
            if not seen[path].count:
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
        values = self._structure(workload, capture(workload), sites)
        fitted = _Fit(workload, self, sites, linears, seen)
        for norm, fed in values["norms"].items():
            fitted.norm(norm, fed["linears"], shift=fed["shift"])
        for path in linears:
            fitted.linear(path)
        attention = {p: s for s, p in paths(workload, sites.ok) if s.endswith(":attention")}
        for path, ranges in attention_histograms(workload, attention).items():
            fitted.attention(attention[path], path, ranges)
        return Decisions(values, fitted.tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same structure; codes are those of rounding to nearest."""
        return Decisions(self._structure(workload, graph, sites))

    def _structure(self, workload: Workload, graph: Graph, sites: Sites) -> dict[str, Any]:
        """Which norms fold into which linears, and why the others do not."""
        linears = [p for _, p in _linears(workload, sites)]
        if self.norms == "layer":
            return {"norms": {}, "kept": {}}
        found = norms(workload, graph, linears)
        folded = {p: f for p, f in found.items() if isinstance(f, Fed)}
        return {
            "norms": {
                p: {"linears": list(f.linears), "shift": f.shift and self.norms == "channel"}
                for p, f in folded.items()
            },
            "kept": {p: f for p, f in found.items() if isinstance(f, str)},
        }

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Norms with their folds, linears as forms, attentions with their hook."""
        edit = Editor(workload)
        values, tensors = decisions.values, decisions.tensors
        shifted = {p for fed in values["norms"].values() if fed["shift"] for p in fed["linears"]}
        made = {
            path: self.at(sites, name).form(
                edit.model.get_submodule(path), path, tensors, moved=path in shifted
            )
            for name, path in _linears(workload, sites)
        }
        # Of some sites alone (to rank them) the other linears behind a folded norm stay in float.
        smooth.fold(
            edit,
            {p: fed["linears"] for p, fed in values["norms"].items()},
            tensors,
            made,
            shifted=[p for p, fed in values["norms"].items() if fed["shift"]],
        )
        for path, form in made.items():
            edit.swap(path, form)
        for name, path in paths(workload, sites.ok):
            if name.endswith(":attention"):
                own = self.at(sites, name)
                config = {"bits": own.activation_bits, "weights": own.attention}
                edit.attach(path, "quantized_attention", config)
                for buffer in _BUFFERS if f"{path}.weight_scale" in tensors else ():
                    edit.tensor(f"{path}.{CHILD}", buffer, tensors[f"{path}.{buffer}"])
        notes = [f"{p} keeps one range: {why}" for p, why in values["kept"].items()]
        return edit.change(self, sites.ok, decisions, notes=notes)

    def form(self, old: Any, path: str, tensors: dict[str, Tensor], *, moved: bool) -> LowBitLinear:
        """The form of a float linear or ``Conv1D``; ``moved`` says that its norm needs a bias."""
        weight = matrix(old)
        rows, columns = weight.shape
        bias = dtype_name(weight if moved and old.bias is None else old.bias)
        new = LowBitLinear(
            columns, rows, self.weight_bits, self.activation_bits, bias, weight.device
        )
        if f"{path}.codes" in tensors:
            q, new.scale, new.zero, new.in_scale, new.in_zero = (
                tensors[f"{path}.{n}"] for n in ("codes", "scale", "zero", "in_scale", "in_zero")
            )
        else:
            q, new.scale, new.zero = grouped(weight, self.weight_bits, 0)
            q = pack_int4(q) if new.held == 4 else q
        new.weight = nn.Parameter(q, requires_grad=False)
        if bias is not None:
            held = tensors.get(f"{path}.bias", old.bias)
            held = torch.zeros(rows, device=weight.device) if held is None else held.detach()
            new.bias = nn.Parameter(held.to(getattr(torch, bias)), requires_grad=False)
        return new


_BUFFERS = tuple(
    [f"{n}_{k}" for n in ("query", "key", "value") for k in ("scale", "zero")] + ["weight_scale"]
)


def _linears(workload: Workload, sites: Sites) -> list[tuple[str, str]]:
    return [(s, p) for s, p in paths(workload, sites.ok) if s.endswith(":weight")]


class _Fit:
    """Works the decision tensors out, site by site; ``sampled`` are float inputs by path."""

    def __init__(
        self,
        workload: Workload,
        technique: RepQuant,
        sites: Sites,
        names: dict[str, str],
        sampled: dict[str, Rows],
    ) -> None:
        self.model, self.technique, self.sites = workload.model, technique, sites
        self.names, self.sampled = names, sampled
        self.tensors: dict[str, Tensor] = {}
        # Of linears behind a folded norm: their weight, bias, input and what it is coded as.
        self.folded: dict[str, tuple[Tensor, Tensor | None, Channels]] = {}

    def at(self, path: str) -> RepQuant:
        """The knobs of one linear."""
        return self.technique.at(self.sites, self.names[path])

    def norm(self, path: str, linears: list[str], *, shift: bool) -> None:
        """Fold the ranges of one norm's channels into its affine map and its linears' weights."""
        norm: Any = self.model.get_submodule(path)
        layers: list[Any] = [self.model.get_submodule(p) for p in linears]
        weights = [matrix(m).double() for m in layers]
        found = self._channels(self.at(linears[0]), linears, weights, shift=shift)
        r, b = found.fold()
        kind = norm.weight.dtype
        self.tensors[f"{path}.weight"] = (norm.weight.detach().double() / r).to(kind)
        if shift:
            self.tensors[f"{path}.bias"] = (norm.bias.detach().double() / r - b).to(kind)
        for name, layer, weight in zip(linears, layers, weights, strict=True):
            wide = weight * r
            bias = None if layer.bias is None else layer.bias.detach().double()
            if shift:
                bias = wide @ b + (0 if bias is None else bias)
            self.folded[name] = wide, bias, found

    def _channels(
        self, knobs: RepQuant, linears: list[str], weights: list[Tensor], *, shift: bool
    ) -> Channels:
        rows = torch.cat([self.sampled[p].values for p in dict.fromkeys(linears)])
        rows = rows[:: max(1, len(linears))]
        bits = knobs.activation_bits
        if knobs.norms == "power-of-two":
            return power_of_two_ranges(rows, bits)
        start = channel_ranges(rows, bits, shift=shift)
        if not knobs.clip_steps:
            return start
        moment = torch.cat(weights).float()
        return trained_ranges(rows, start, moment.T @ moment, knobs.clip_steps, shift=shift)

    def linear(self, path: str) -> None:
        """Codes of one linear's weight, the range of its input, its bias."""
        knobs, layer = self.at(path), self.model.get_submodule(path)
        x = self.sampled[path].values.double()
        weight, bias, channels = self.folded.get(path, (matrix(layer).double(), _bias(layer), None))
        if channels is None:
            seen = self.sampled[path].histogram
            scale, zero = tensor_range(seen, knobs.activation_bits, search=knobs.search)
        else:
            scale, zero = channels.layer()
            r, b = channels.fold()
            x = x / r - b
        top = 2**knobs.activation_bits - 1
        coded = (torch.clamp(torch.round(x / scale) + zero, 0, top) - zero) * scale
        if knobs.reconstruct:
            q, step, point = reconstructed(weight.float(), x, coded, knobs.weight_bits)
        else:
            q, step, point = grouped(weight.float(), knobs.weight_bits, 0, clip=knobs.search)
        if knobs.reconstruct and bias is not None:
            bias = bias + (x @ weight.T - coded @ back(q, step, point).double().T).mean(0)
        self.tensors |= {
            f"{path}.codes": pack_int4(q) if knobs.weight_bits <= 4 else q,
            f"{path}.scale": step,
            f"{path}.zero": point,
            f"{path}.in_scale": torch.tensor([scale]),
            f"{path}.in_zero": torch.tensor([zero], dtype=torch.int32),
        }
        if bias is not None:
            self.tensors[f"{path}.bias"] = bias.float()

    def attention(self, name: str, path: str, seen: dict[str, Histogram]) -> None:
        """Ranges of one attention's queries, keys, values and weights."""
        own = self.technique.at(self.sites, name)
        for part in ("query", "key", "value"):
            scale, zero = tensor_range(seen[part], own.activation_bits, search=own.search)
            self.tensors[f"{path}.{part}_scale"] = torch.tensor([scale])
            self.tensors[f"{path}.{part}_zero"] = torch.tensor([zero], dtype=torch.int32)
        scale = weight_scale(seen["weight"], own.activation_bits, own.attention)
        self.tensors[f"{path}.weight_scale"] = torch.tensor([scale])


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach().double()
