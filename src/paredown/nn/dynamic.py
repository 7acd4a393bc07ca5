"""Convolutions whose kernels are predicted per position: small shared ones, and neighbourhoods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.errors import InputError


def dynamic_depthwise(x: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """A depthwise convolution with its own kernel at every position; zeros beyond the border.

    ``x`` is ``(batch, channels, h, w)``, ``kernels`` ``(batch, shared, taps, h, w)`` with an odd
    square of taps, row by row; channel ``c`` uses kernel ``c % shared`` (LSNet's aggregation,
    arXiv:2503.23135, equation 6). A batch of one kernel set serves all images. With a ``stride``
    the kernels' h and w are the output's. One pass per tap: nothing is unfolded. Raises
    ``InputError`` where the shapes do not fit.
    """
    batch, channels, h, w = x.shape
    shared, taps = kernels.shape[1:3]
    side = round(taps**0.5)
    if channels % shared or side * side != taps or side % 2 == 0:
        raise InputError(
            f"kernels {tuple(kernels.shape)} do not fit {channels} channels: their number must "
            "divide the channels and their taps be an odd square"
        )
    high, wide = kernels.shape[3:]
    if (high, wide) != ((h - 1) // stride + 1, (w - 1) // stride + 1):
        raise InputError(f"kernels for {high} x {wide} outputs do not fit a {h} x {w} map")
    reach = side // 2
    padded = F.pad(x, (reach, reach, reach, reach))
    padded = padded.reshape(batch, channels // shared, shared, h + 2 * reach, w + 2 * reach)
    out: Tensor | None = None
    for tap in range(taps):
        row, column = divmod(tap, side)
        rows = slice(row, row + (high - 1) * stride + 1, stride)
        columns = slice(column, column + (wide - 1) * stride + 1, stride)
        part = padded[..., rows, columns]
        weight = kernels[:, None, :, tap]
        out = part * weight if out is None else torch.addcmul(out, part, weight)
    assert out is not None
    return out.reshape(batch, channels, high, wide)


def neighbourhood_sum(values: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """Each position's weighted sum over its ``kernel x kernel`` neighbours (arXiv:2204.07143).

    ``values`` is ``(batch, groups, channels, h, w)``, ``weights`` ``(batch, groups, h, w, taps)``.
    At the border the window is moved inside, so every position has all its taps. Raises
    ``InputError`` for a map smaller than the kernel.
    """
    h, w = values.shape[-2:]
    if h < kernel or w < kernel:
        raise InputError(f"a {kernel} x {kernel} neighbourhood needs a larger map than {h} x {w}")
    windows = values.unfold(3, kernel, 1).unfold(4, kernel, 1)
    rows, columns = window_starts(h, kernel), window_starts(w, kernel)
    windows = windows.index_select(3, rows.to(values.device))
    windows = windows.index_select(4, columns.to(values.device))
    # (batch, groups, h, w, channels, taps) @ (..., taps, 1)
    windows = windows.flatten(5).permute(0, 1, 3, 4, 2, 5)
    return (windows @ weights.unsqueeze(-1)).squeeze(-1).permute(0, 1, 4, 2, 3)


def window_starts(length: int, kernel: int) -> Tensor:
    """Where each position's window begins: centred, but moved inside at the borders."""
    return (torch.arange(length) - kernel // 2).clamp(0, length - kernel)
