"""The operators between techniques and backends: explicit quantize and dequantize, as custom ops.

The eager form here is the reference semantics. Each backend owns a lowering to its real operator.

Conventions: ``q = clamp(round_half_even(x / scale) + zero, qmin, qmax)`` and
``x' = (q - zero) * scale``. ``scale`` is float32 (of groups float16 too: it is widened before it
multiplies). Granularity follows from its shape and ``axis``
or groups: one element is per tensor; ``axis`` >= 0 one scale per index of that axis; grouped 2-D
weights have scales ``(rows, groups)``. ``zero`` is an integer tensor of one element or of
``scale``'s shape. Zero is exact: it maps to the zero point and back to 0.0. Integers hold no NaN:
`quantize` makes it the zero point (so 0.0); infinities saturate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.errors import InputError

AT_ONCE = 1 << 20
"""Packed elements of a matrix that are dequantized together."""

INT_RANGE = {
    ("int8", True): (-127, 127),
    ("int8", False): (0, 255),
    ("int4", True): (-7, 7),
    ("int4", False): (0, 15),
}


def _spread(scale: Tensor, x_ndim: int, axis: int) -> Tensor:
    """Scale shaped to broadcast along ``axis`` of a tensor with ``x_ndim`` dimensions."""
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if d == axis else 1 for d in range(x_ndim)])


@torch.library.custom_op("paredown::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    """Float to integers: int8 when ``qmin < 0``, else uint8; per tensor or per ``axis``."""
    s, z = _spread(scale, x.ndim, axis), _spread(zero, x.ndim, axis)
    q = torch.clamp(torch.nan_to_num(torch.round(x.float() / s), 0.0) + z, qmin, qmax)
    return q.to(torch.int8 if qmin < 0 else torch.uint8)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8 if qmin < 0 else torch.uint8)


@torch.library.custom_op("paredown::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Integers (int8 or uint8) back to ``dtype``; per tensor or per ``axis``."""
    s, z = _spread(scale, q.ndim, axis), _spread(zero, q.ndim, axis)
    return ((q.to(torch.float32) - z) * s).to(dtype)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(q, dtype=dtype)


@torch.library.custom_op("paredown::dequantize_groups", mutates_args=())
def dequantize_groups(
    q: Tensor, scale: Tensor, zero: Tensor, bits: int, columns: int, dtype: torch.dtype
) -> Tensor:
    """Packed grouped weights to a float matrix ``(rows, columns)``.

    ``bits`` 8: ``q`` is ``(rows, columns)`` uint8. ``bits`` 4: ``(rows, ceil(columns / 2))`` uint8,
    the even column in the low nibble. ``scale`` (float32 or float16) and ``zero`` (uint8) are
    ``(rows, groups)``; columns are split evenly over the groups.
    """
    return _ungroup(q, scale, zero, bits, columns, dtype)


def _ungroup(
    q: Tensor, scale: Tensor, zero: Tensor, bits: int, columns: int, dtype: torch.dtype
) -> Tensor:
    if q.numel() > AT_ONCE and len(q) > 1:
        count = max(1, AT_ONCE // q.shape[1])
        out = torch.empty((len(q), columns), dtype=dtype, device=q.device)
        parts = zip(*(t.split(count) for t in (out, q, scale, zero)), strict=True)
        for to, some, s, z in parts:
            to.copy_(_ungroup(some, s, z, bits, columns, dtype))
        return out
    if bits == 4:
        q = torch.stack((q & 15, q >> 4), dim=-1).flatten(-2)[:, :columns]
    rows, groups = scale.shape
    g = q.reshape(rows, groups, columns // groups).to(torch.float32)
    w = g.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
    return w.reshape(rows, columns).to(dtype)


@dequantize_groups.register_fake
def _(
    q: Tensor, scale: Tensor, zero: Tensor, bits: int, columns: int, dtype: torch.dtype
) -> Tensor:
    return q.new_empty((scale.shape[0], columns), dtype=dtype)


@torch.library.custom_op("paredown::embedding_groups", mutates_args=())
def embedding_groups(
    index: Tensor,
    q: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows of a packed grouped table: ``index`` of any shape to ``(*index.shape, columns)``.

    Only the rows asked for are read and dequantized; the table is laid out as in
    `dequantize_groups`.
    """
    rows = index.reshape(-1)
    w = _ungroup(q[rows], scale[rows], zero[rows], bits, columns, dtype)
    return w.reshape(*index.shape, columns)


@embedding_groups.register_fake
def _(
    index: Tensor,
    q: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    return q.new_empty((*index.shape, columns), dtype=dtype)


@torch.library.custom_op("paredown::dynamic_quantize", mutates_args=())
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per-tensor uint8 with scale and zero point from this tensor's own range, zero kept exact.

    Returns ``(q, scale (1,), zero (1,) int32)``. The rule is ONNX DynamicQuantizeLinear's. A NaN
    anywhere makes the scale NaN, and with it everything that is dequantized.
    """
    x32 = x.float()
    low = torch.clamp(x32.min(), max=0.0)
    high = torch.clamp(x32.max(), min=0.0)
    scale = ((high - low) / 255.0).clamp(min=1e-12).reshape(1)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.int32)
    q = torch.clamp(torch.round(x32 / scale) + zero, 0, 255).to(torch.uint8)
    return q, scale, zero


@dynamic_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, dtype=torch.uint8),
        x.new_empty((1,), dtype=torch.float32),
        x.new_empty((1,), dtype=torch.int32),
    )


@torch.library.custom_op("paredown::dynamic_quantize_rows", mutates_args=())
def dynamic_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(rows, columns)`` to int8, symmetric, each row by its own largest absolute value.

    Returns ``(q, scale (rows,), zero (1,) int32)``; ``q = round(x / scale)`` with
    ``scale = max|x| / 127``. A NaN or an infinity in a row makes its scale so, and with it the row.
    """
    x32 = x.float()
    scale = x32.abs().amax(dim=1).clamp(min=1e-30) / 127.0
    q = torch.nan_to_num(torch.round(x32 / scale.unsqueeze(1)), 0.0).clamp(-127, 127)
    return q.to(torch.int8), scale, torch.zeros(1, dtype=torch.int32, device=x.device)


@dynamic_quantize_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, dtype=torch.int8),
        x.new_empty((x.shape[0],), dtype=torch.float32),
        x.new_empty((1,), dtype=torch.int32),
    )


def pack_int4(q: Tensor) -> Tensor:
    """Pack ``(rows, columns)`` values 0..15 two to a byte, the even column in the low nibble."""
    if q.ndim != 2:
        raise InputError(f"pack_int4 takes (rows, columns), got shape {tuple(q.shape)}")
    if q.shape[1] % 2:
        q = torch.nn.functional.pad(q, (0, 1))
    q = q.to(torch.uint8)
    return q[:, 0::2] | (q[:, 1::2] << 4)
