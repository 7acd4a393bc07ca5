"""Linear attention: keys and values are summed once, queries read the sum (arXiv:2006.16236)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Tensor) -> Tensor:
    """The paper's feature map, positive everywhere (Katharopoulos et al. 2020, equation 7)."""
    return F.elu(x) + 1


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, eps: float = 1e-6) -> Tensor:
    """``q (k^T v)`` over ``q (sum of k)``: equations 5 and 6, for features that are positive.

    All ``(batch, heads, tokens, dim)``; linear in the tokens, unlike softmax attention.
    """
    summed = k.transpose(-2, -1) @ v
    total = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return (q @ summed) / (total + eps)


class LinearAttention(nn.Module):
    """Multi-head linear attention over ``(batch, tokens, channels)``, qkv in one projection."""

    def __init__(
        self, channels: int, num_heads: int, *, feature_map: FeatureMap = elu_plus_one
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.feature_map = feature_map
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = linear_attention(self.feature_map(q), self.feature_map(k), v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))
