"""Transformer blocks of the zoo: multi-head self-attention and the pre-norm encoder block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.drop import drop_path
from paredown.nn.mlp import Mlp

__all__ = ["CrossAttention", "EncoderBlock", "Mlp", "SelfAttention"]


class SelfAttention(nn.Module):
    """Multi-head self-attention over ``(batch, tokens, channels)``, qkv in one projection."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class CrossAttention(nn.Module):
    """Multi-head attention of one set of tokens over another, ``q`` and ``kv`` apart.

    With the class token asking all tokens it is CaiT's class attention (arXiv:2103.17239).
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """``(batch, n, channels)`` over ``(batch, m, channels)`` to the first's shape."""
        batch, count, _ = asking.shape
        q = self.q(asking).reshape(batch, count, self.num_heads, self.head_dim).transpose(1, 2)
        kv = self.kv(asked).reshape(batch, -1, 2, self.num_heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, count, -1))


class EncoderBlock(nn.Module):
    """Pre-norm block: attention and MLP, each on a residual (ViT, Dosovitskiy et al. 2021).

    ``drop`` is the rate of stochastic depth (DeiT). ``mixer`` stands in place of the attention.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        drop: float = 0.0,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = SelfAttention(channels, num_heads) if mixer is None else mixer
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, round(channels * mlp_ratio))
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))
