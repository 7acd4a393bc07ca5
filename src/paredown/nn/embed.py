"""Patches and positions: patch embedding, fixed and learned positions, relative bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError


class PatchEmbed(nn.Module):
    """A strided convolution over patches, flattened to ``(batch, tokens, channels)``.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), equation 1.
    """

    def __init__(self, in_channels: int, channels: int, patch: int = 16) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, h, w)`` to ``(batch, h / patch * w / patch, channels)``."""
        return self.proj(x).flatten(2).transpose(1, 2)


def patches(image_size: int, patch: int) -> int:
    """Patches along one side; ``InputError`` where the patch does not divide the image."""
    if image_size % patch:
        raise InputError(
            f"patch {patch} does not divide the image_size {image_size}: "
            f"use a multiple of {patch}, as {max(image_size // patch, 1) * patch}"
        )
    return image_size // patch


def sincos_1d(positions: Tensor, channels: int, *, base: float = 10_000.0) -> Tensor:
    """Sines, then cosines, of positions (Vaswani et al. 2017): ``(n,)`` to ``(n, channels)``."""
    half = channels // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.double().reshape(-1, 1) * frequency
    return torch.cat((angle.sin(), angle.cos()), 1).float()


def sincos_2d(side: int, channels: int, *, base: float = 10_000.0) -> Tensor:
    """Fixed positions of a square of patches, ``(side * side, channels)``: half x, half y.

    As in MAE and DiT: the first half of the channels encodes the column, the second the row.
    Raises ``InputError`` where the channels are no multiple of 4.
    """
    if channels % 4:
        raise InputError(f"2-D sine positions need a multiple of 4 channels, got {channels}")
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x = sincos_1d(column.reshape(-1), channels // 2, base=base)
    y = sincos_1d(row.reshape(-1), channels // 2, base=base)
    return torch.cat((x, y), 1)


def resized_positions(table: Tensor, side: int, *, prefix: int = 0) -> Tensor:
    """A learned table ``(1, prefix + old**2, channels)`` for another side, bicubic.

    The first ``prefix`` rows (class tokens) are kept. Raises ``InputError`` for a table that is not
    square.
    """
    head, grid = table[:, :prefix], table[:, prefix:]
    old = round(grid.shape[1] ** 0.5)
    if old * old != grid.shape[1]:
        raise InputError(f"{grid.shape[1]} positions are no square: they cannot be resized")
    if old == side:
        return table
    image = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat((head, image.flatten(2).transpose(1, 2)), 1)


class RelativePositionBias(nn.Module):
    """A learned bias per head and offset in a window (Swin, arXiv:2103.14030, equation 4).

    The table is ``((2 h - 1) (2 w - 1), num_heads)`` for windows of ``h x w`` tokens.
    """

    def __init__(self, window: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        h, w = window
        self.table = nn.Parameter(torch.empty((2 * h - 1) * (2 * w - 1), num_heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        # Made anew from the window, so it belongs in no weight file.
        self.register_buffer("index", relative_index(h, w), persistent=False)
        self.tokens = h * w

    index: Tensor

    def forward(self) -> Tensor:
        """``(num_heads, tokens, tokens)``, to be added to attention scores."""
        bias = self.table[self.index.reshape(-1)]
        return bias.reshape(self.tokens, self.tokens, -1).permute(2, 0, 1)


def relative_index(h: int, w: int) -> Tensor:
    """Row of the relative table for each pair of tokens of an ``h x w`` window."""
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    row, column = row.reshape(-1), column.reshape(-1)
    down = row[:, None] - row[None, :] + h - 1
    right = column[:, None] - column[None, :] + w - 1
    return down * (2 * w - 1) + right
