"""Transformer blocks of the zoo: multi-head self-attention and the pre-norm encoder block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.drop import drop_path
from paredown.nn.mlp import Mlp

__all__ = ["EncoderBlock", "Mlp", "SelfAttention"]


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


class EncoderBlock(nn.Module):
    """Pre-norm block: attention and MLP, each on a residual (ViT, Dosovitskiy et al. 2021).

    ``drop`` is the rate of stochastic depth (DeiT).
    """

    def __init__(
        self, channels: int, num_heads: int, mlp_ratio: float = 4.0, *, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(channels, eps=1e-6), SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, round(channels * mlp_ratio))
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))
