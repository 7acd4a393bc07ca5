"""What a step is told of its tensors' layouts: strides that repeat, transposes, strided copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paredown.runtime.native import views
from paredown.runtime.native.plan import WIDTH, Tensor

COPY_DIMS = 6


class Lacking(Exception):
    """The engine has no operator for this; the message says what is missing. Torch runs it."""


def quantization(prefix: str, t: Tensor) -> dict[str, Any]:
    """The fields of a quantized tensor's scale and zero; none of floats."""
    if t.dtype not in ("uint8", "int8"):
        return {}
    return {f"{prefix}_scale": t.scale, f"{prefix}_zero": t.zero}


def spread(b: Tensor, shape: Sequence[int]) -> list[int]:
    """Strides of ``b`` as if it had ``shape``; 0 where it repeats."""
    lead = len(shape) - len(b.shape)
    if lead < 0:
        raise Lacking("an operand with more dimensions than the result")
    out = [0] * lead
    for n, s, want in zip(b.shape, b.strides, shape[lead:], strict=True):
        if n not in (1, want):
            raise Lacking("operands that broadcast each other")
        out.append(0 if n == 1 else s)
    return out


def planes(t: Tensor, out: Tensor) -> dict[str, Any] | None:
    """The fields of a transpose between ``(n, c, pixels)`` and ``(n, pixels, c)``."""
    if len(t.shape) < 3 or t.dtype not in ("float32", "bfloat16", "uint8", "int8"):
        return None
    n, c, *rest = t.shape
    count = 1
    for s in rest:
        count *= s
    if c == 1 or count == 1:
        return None
    integers = out if out.dtype == "uint8" else t
    for a, b, to_nhwc in ((t, out, True), (out, t, False)):
        planar = views.nested(a.shape[2:], a.strides[2:])
        wide = views.nested(b.shape[2:], b.strides[2:])
        if planar is None or wide is None or planar[1] != 1 or b.strides[1] != 1:
            continue
        if a.strides[1] != count or (n > 1 and a.strides[0] != count * c):
            continue
        if wide[1] < c or (n > 1 and b.strides[0] != wide[1] * count):
            continue
        return {
            "in_type": t.dtype,
            "out_type": out.dtype,
            "to_nhwc": to_nhwc,
            "n": n,
            "c": c,
            "pixels": count,
            "nhwc_stride": wide[1],
            "scale": integers.scale,
            "zero": integers.zero,
        }
    return None


def same_rows(t: Tensor, out: Tensor) -> bool:
    """Whether an elementwise pass reads ``t`` in rows as it writes ``out``."""
    by = views.order(out)
    sizes = [out.shape[i] for i in by]
    theirs, ours = ([x.strides[i] for i in by] for x in (t, out))
    repeats = any(s == 0 and n > 1 for n, s in zip(sizes, theirs, strict=True))
    return not repeats and views.broadcast(sizes, theirs, [0] * len(sizes), ours) is not None


def copy_fields(t: Tensor, out: Tensor) -> dict[str, int]:
    """The fields of a strided copy: dimensions in the memory order of ``out``, merged."""
    merged: list[list[int]] = []
    for i in views.order(out):
        n, a, b = out.shape[i], t.strides[i], out.strides[i]
        if n == 1:
            continue
        if merged and merged[-1][1] == a * n and merged[-1][2] == b * n:
            merged[-1] = [merged[-1][0] * n, a, b]
        else:
            merged.append([n, a, b])
    if len(merged) > COPY_DIMS:
        raise Lacking(f"a copy over more than {COPY_DIMS} dimensions")
    merged = [[1, 0, 0]] * (COPY_DIMS - len(merged)) + merged
    fields = {"width": WIDTH[t.dtype]}
    for d, (n, a, b) in enumerate(merged):
        fields |= {f"size{d}": n, f"in_stride{d}": a, f"out_stride{d}": b}
    return fields
