"""Inductor's lowering table: paredown's operators as plain aten, so that inductor can fuse them."""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor


@cache
def register() -> None:
    """Add the decompositions to inductor's table (once per process)."""
    from torch._inductor.decomposition import register_decomposition

    # Importing defines the operators that the table names.
    importlib.import_module("paredown.runtime.ops")
    namespace = torch.ops.paredown
    register_decomposition([namespace.quantize.default])(_quantize)
    register_decomposition([namespace.dequantize.default])(_dequantize)
    register_decomposition([namespace.dequantize_groups.default])(_dequantize_groups)
    register_decomposition([namespace.embedding_groups.default])(_embedding_groups)
    register_decomposition([namespace.dynamic_quantize.default])(_dynamic_quantize)
    register_decomposition([namespace.dynamic_quantize_rows.default])(_dynamic_quantize_rows)


def _spread(scale: Tensor, ndim: int, axis: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if d == axis else 1 for d in range(ndim)])


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
    s, z = _spread(scale, x.ndim, axis), _spread(zero, x.ndim, axis)
    q = torch.clamp(torch.nan_to_num(torch.round(x.float() / s), 0.0) + z, qmin, qmax)
    return q.to(torch.int8 if qmin < 0 else torch.uint8)


def _dequantize(q: Tensor, scale: Tensor, zero: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    s, z = _spread(scale, q.ndim, axis), _spread(zero, q.ndim, axis)
    return ((q.to(torch.float32) - z) * s).to(dtype)


def _dequantize_groups(
    q: Tensor, scale: Tensor, zero: Tensor, bits: int, columns: int, dtype: torch.dtype
) -> Tensor:
    if bits == 4:
        q = torch.stack((q & 15, q >> 4), dim=-1).flatten(-2)[:, :columns]
    rows, groups = scale.shape
    g = q.reshape(rows, groups, columns // groups).to(torch.float32)
    return ((g - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).reshape(rows, columns).to(dtype)


def _embedding_groups(
    index: Tensor,
    q: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    rows = index.reshape(-1)
    w = _dequantize_groups(q[rows], scale[rows], zero[rows], bits, columns, dtype)
    return w.reshape(*index.shape, columns)


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x32 = x.float()
    low = torch.clamp(x32.min(), max=0.0)
    high = torch.clamp(x32.max(), min=0.0)
    scale = ((high - low) / 255.0).clamp(min=1e-12).reshape(1)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.int32)
    return torch.clamp(torch.round(x32 / scale) + zero, 0, 255).to(torch.uint8), scale, zero


def _dynamic_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x32 = x.float()
    scale = x32.abs().amax(dim=1).clamp(min=1e-30) / 127.0
    q = torch.nan_to_num(torch.round(x32 / scale.unsqueeze(1)), 0.0).clamp(-127, 127)
    return q.to(torch.int8), scale, torch.zeros(1, dtype=torch.int32, device=x.device)


__all__ = ["register"]
