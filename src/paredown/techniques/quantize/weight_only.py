"""Weight-only int8 and int4 with grouped asymmetric scales (Krishnamoorthi 2018, arXiv:1806.08342,
section 3.1.1; groups along the input dimension as in GPTQ's and AWQ's formats).

Each row of a weight is cut into groups of ``group_size`` columns; a group has a float16 scale and a
uint8 zero point over its own range, widened to hold 0 (one scale for a whole row, or one beyond
float16's normal range, is float32). ``clip`` shrinks each group's range to the least squared error
over a grid, from the weights alone.

Cost law: 4x (8 bits) or 8x / (1 + 6 / group_size) (4 bits) fewer weight bytes; time falls where
weight traffic bounds the run (decoding, small batches) and the backend multiplies packed weights.
A head whose weight is its embedding's is packed together with it: both read one packed matrix,
held once. Limits: linears and ``Conv1D``; embeddings of their own on request; other shared weights
are refused.
"""

# torch keeps its modules' tables private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.onnx_layers import OnnxConv
from paredown.runtime.ops import pack_int4
from paredown.runtime.quantized import WeightOnlyConv, WeightOnlyEmbedding, WeightOnlyLinear
from paredown.technique import Change, Choice, Decisions, Lowers, Rewrite, Sites, Stage, Touches
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    kind_of,
    matrix,
    paths,
    symmetric,
    weighted_sites,
)
from paredown.workload import Workload

_CLIPS = tuple(1.0 - 0.05 * i for i in range(11))
_HALF = (2.0**-14, 65504.0 / 2)
"""Scales that float16 holds to its 11 bits."""
_AT_ONCE = 1 << 22
"""Elements of a weight that are quantized together."""


@dataclass(frozen=True)
class WeightOnly(Rewrite):
    """Packed int8 or int4 weights in groups, float arithmetic (Krishnamoorthi 2018, 3.1.1)."""

    name: ClassVar[str] = "weight-only"
    paper: ClassVar[str | None] = "quant-whitepaper"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_DTYPE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    maturity: ClassVar[Any] = "stable"
    onnx: ClassVar[bool] = True

    bits: Annotated[int, Choice(8, 4), "bits of a weight"] = 8
    group_size: Annotated[
        int, Choice(0, 32, 64, 128), "input columns that share a scale; 0: the whole row"
    ] = 0
    clip: Annotated[bool, "shrink each group's range to the least squared error"] = False
    embeddings: Annotated[bool, "pack embedding tables too"] = False

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Int8 per row, int4 in groups of 32."""
        return {"int8": {}, "int4": {"bits": 4, "group_size": 32, "clip": True}}

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"bits must be 4 or 8, got {self.bits}")
        if self.group_size not in (0, 32, 64, 128):
            raise InputError(f"group_size must be 0, 32, 64 or 128, got {self.group_size}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D`` (and embeddings where asked), ``path:weight``."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            pair = _tied_pair(usage, module)
            if pair is not None and kind == "embedding":
                return f"it is packed with {pair[0]}, whose weight it is"
            if kind == "embedding":
                why = self._embedding(module)
                if why:
                    return why
            elif kind == "conv" and isinstance(module, OnnxConv):
                if self.bits != 8 or self.group_size:
                    return "a convolution takes int8 weights with one scale per channel alone"
            elif kind != "linear":
                return "only linear layers and embeddings take packed weights"
            why = usage.why_not(module)
            if why and pair is None:
                return why
            columns = matrix(module).shape[1]
            if self.group_size and columns % self.group_size:
                return f"group_size {self.group_size} does not divide its {columns} columns"
            return None

        return weighted_sites(workload, judge)

    def _embedding(self, module: Any) -> str | None:
        if not self.embeddings:
            return "embeddings are packed only with embeddings=true"
        if not isinstance(module, nn.Embedding):
            return f"{type(module).__name__} reduces its rows: no packed form"
        if module.max_norm is not None:
            return "max_norm rescales its weight at run time"
        return None

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Whose scales float16 cannot hold."""
        wide = [
            path
            for name, path in paths(workload, sites.ok)
            if not self.at(sites, name)._narrow(workload.model.get_submodule(path))
        ]
        return Decisions({"wide": wide})

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Taken as if float16 held them all."""
        return Decisions({"wide": []})

    def _narrow(self, old: nn.Module) -> bool:
        """Whether float16's normal range holds all scales of groups that this weight may get."""
        if not self.group_size:
            return True
        weight, top = matrix(old), 2**self.bits - 1
        least, most = _HALF
        for part in weight.split(max(1, _AT_ONCE // weight.shape[1])):
            w = part.reshape(len(part), -1, self.group_size)
            low, high = w.amin(-1).float().clamp(max=0), w.amax(-1).float().clamp(min=0)
            scale = (high - low) / top
            live = scale > 0
            if bool(((scale > most) | (live & (scale * _CLIPS[-1] < least))).any()):
                return False
        return True

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its packed form."""
        edit = Editor(workload)
        wide = set(decisions.values.get("wide", ()))
        for name, path in paths(workload, sites.ok):
            own, old = self.at(sites, name), edit.model.get_submodule(path)
            scales = "float16" if own.group_size and path not in wide else "float32"
            table = _table_of(edit.model, old)
            edit.swap(path, own._form(old, scales))
            if table is not None:
                edit.swap(table, own._form(edit.model.get_submodule(table), scales))
                for tensor in ("weight", "scale", "zero"):
                    edit.tie(table, tensor, f"{path}.{tensor}")
        return edit.change(self, sites.ok, decisions)

    def _form(
        self, old: Any, scales: str = "float32"
    ) -> WeightOnlyLinear | WeightOnlyConv | WeightOnlyEmbedding:
        weight = matrix(old)
        if kind_of(old) == "conv":
            return _conv(old)
        rows, columns = weight.shape
        grid = (self.bits, self.group_size)
        if isinstance(old, nn.Embedding):
            kind = str(weight.dtype).removeprefix("torch.")
            new: Any = WeightOnlyEmbedding(rows, columns, *grid, kind, weight.device, scales)
        else:
            bias = dtype_name(old.bias)
            new = WeightOnlyLinear(columns, rows, *grid, bias, weight.device, scales)
            if old.bias is not None:
                new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        q, scale, new.zero = grouped(weight, *grid, clip=self.clip, half=scales == "float16")
        new.scale = scale.to(getattr(torch, scales))
        packed = pack_int4(q) if self.bits == 4 else q
        new.weight = nn.Parameter(packed, requires_grad=False)
        return new


def _tied_pair(usage: Usage, module: nn.Module) -> tuple[str, str] | None:
    """Paths of the head and the embedding that share this weight and let no one else read it."""
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    owners = dict.fromkeys(n.rpartition(".")[0] for n in usage.tied(weight))
    modules = {p: usage.model.get_submodule(p) for p in owners}
    heads = [p for p, m in modules.items() if type(m) is nn.Linear]
    tables = [p for p, m in modules.items() if type(m) is nn.Embedding and m.max_norm is None]
    if (len(heads), len(tables), len(owners)) != (1, 1, 2):
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in modules.values()):
        return None
    readers = {node.module for n in usage.tied(weight) for node in usage.readers[n]}
    return (heads[0], tables[0]) if readers == set(owners) else None


def _table_of(model: nn.Module, head: nn.Module) -> str | None:
    """Path of the embedding that holds a head's weight, None where it holds its own."""
    if type(head) is not nn.Linear:
        return None
    return next(
        (
            p
            for p, m in model.named_modules()
            if type(m) is nn.Embedding and m.weight is head.weight
        ),
        None,
    )


def _conv(old: Any) -> WeightOnlyConv:
    """A convolution of an ONNX file with int8 weights, symmetric, one scale per channel."""
    weight = matrix(old)
    geometry = (old.stride, old.padding, old.dilation, old.groups)
    new = WeightOnlyConv(tuple(weight.shape), *geometry, dtype_name(old.bias), weight.device)
    q, new.scale = symmetric(weight, 8, per_channel=True)
    new.weight = nn.Parameter(q, requires_grad=False)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
    return new


def grouped(
    weight: Tensor, bits: int, group_size: int, *, clip: bool = False, half: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric integers of a ``(rows, columns)`` weight in groups of columns.

    Returns ``(q, scale, zero)``: uint8 values ``(rows, columns)`` up to ``2**bits - 1``, float32
    scales and uint8 zero points ``(rows, groups)``; with ``half`` scales are float16's, the next
    above. Without ``clip``, ``|w - w'| <= scale / 2``:
    rounding the zero point moves both ends by at most half a step, so clamping stays within it.
    Rows are taken some at a time: a large head's floats would be several times its weight.
    """
    if weight.numel() > _AT_ONCE:
        rows = max(1, _AT_ONCE // weight.shape[1])
        parts = [grouped(w, bits, group_size, clip=clip, half=half) for w in weight.split(rows)]
        q, scale, zero = (torch.cat(part) for part in zip(*parts, strict=True))
        return q, scale, zero
    rows, columns = weight.shape
    w = weight.detach().to(torch.float32).reshape(rows, -1, group_size or columns)
    low = w.amin(dim=-1, keepdim=True).clamp(max=0.0)
    high = w.amax(dim=-1, keepdim=True).clamp(min=0.0)
    top = float(2**bits - 1)
    scale, zero = _span(low, high, top, half)
    if clip:
        best = _error(w, scale, zero, top)
        for share in _CLIPS[1:]:
            s, z = _span(low * share, high * share, top, half)
            error = _error(w, s, z, top)
            better = error < best
            best = torch.where(better, error, best)
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    q = torch.clamp(torch.round(w / scale) + zero, 0, top)
    u8 = torch.uint8
    return q.to(u8).reshape(rows, columns), scale.squeeze(-1), zero.squeeze(-1).to(u8)


def _span(low: Tensor, high: Tensor, top: float, half: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges that hold 0; an empty range gets scale 1."""
    width = high - low
    scale = torch.where(width > 0, width / top, torch.ones_like(width))
    if half:
        # Rounded up, a step covers the range as before; of positive numbers the next is one more.
        near = scale.to(torch.float16)
        above = (near.view(torch.int16) + 1).view(torch.float16)
        scale = torch.where(near.float() < scale, above, near).float()
    zero = torch.clamp(torch.round(-low / scale), 0, top)
    return scale, zero


def _error(w: Tensor, scale: Tensor, zero: Tensor, top: float) -> Tensor:
    back = (torch.clamp(torch.round(w / scale) + zero, 0, top) - zero) * scale
    return (w - back).square().sum(dim=-1, keepdim=True)
