"""Rotary positions on a grid and the pre-norm block that uses them (RoFormer, arXiv:2104.09864).

Every axis of the grid turns its own share of the pairs of a head's channels, so a score depends on
offsets alone and a network takes grids of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation, silu
from paredown.nn.mlp import GatedMlp

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines ``(tokens, head_dim / 2)``, one angle for each pair of channels."""


def axial_rotation(
    grid: Sequence[int], head_dim: int, *, base: float = 10_000.0, like: Tensor | None = None
) -> Rotation:
    """Angles of the tokens of a grid, rows first: ``(t, h, w)``, ``(h, w)`` or ``(n,)``.

    The axes share the pairs evenly; what is left over goes to the last ones, so that of 32 pairs a
    clip's time has 10, its rows and columns 11 each. ``like`` sets device and dtype. Raises
    ``InputError`` for an odd head, or one with fewer pairs than axes.
    """
    pairs, axes = head_dim // 2, len(grid)
    if head_dim % 2 or pairs < axes:
        raise InputError(f"{axes} axes need an even head of at least {2 * axes}, got {head_dim}")
    device = None if like is None else like.device
    angles: list[Tensor] = []
    for i, place in enumerate(_places(grid, device)):
        share = pairs // axes + (1 if i >= axes - pairs % axes else 0)
        rates = base ** (-torch.arange(share, dtype=torch.float32, device=device) / share)
        angles.append(place[:, None] * rates)
    angle = torch.cat(angles, 1)
    dtype = None if like is None else like.dtype
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _places(grid: Sequence[int], device: torch.device | None) -> list[Tensor]:
    """Each axis' place of every token, ``(tokens,)``."""
    sides = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    return [m.reshape(-1) for m in torch.meshgrid(*sides, indexing="ij")]


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys ``(..., tokens, head_dim)`` turned; channel i pairs with i + half."""
    cos, sin = rotation
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are turned by their place."""

    def __init__(self, channels: int, num_heads: int, *, qkv_bias: bool = False) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(rotated(q, rotation), rotated(k, rotation), v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class RotaryBlock(nn.Module):
    """Pre-norm block of rotary attention and a gated MLP, each on a residual.

    ``hidden`` is the width of the MLP's gate; ``act`` SiLU is SwiGLU.
    """

    def __init__(
        self, channels: int, num_heads: int, hidden: int, *, act: Activation = silu
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = RotaryAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = GatedMlp(channels, hidden, act=act)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))
