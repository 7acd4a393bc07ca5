"""Linear attention: keys and values are summed once, queries read the sum (arXiv:2006.16236).

The simplified form of SLAB (arXiv:2405.11582, section 3.3) is here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError

FeatureMap = Callable[[Tensor], Tensor]
Order = Literal["linear", "quadratic"]


def elu_plus_one(x: Tensor) -> Tensor:
    """The paper's feature map, positive everywhere (Katharopoulos et al. 2020, equation 7)."""
    return F.elu(x) + 1


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float = 1e-6, order: Order = "linear"
) -> Tensor:
    """``q (k^T v)`` over ``q (sum of k)``: equations 5 and 6, for features that are positive.

    All ``(batch, heads, tokens, dim)``; linear in the tokens, unlike softmax attention. The order
    "quadratic" computes ``(q k^T) v``, the same: cheaper for fewer tokens than ``dim``.
    """
    total = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    if order == "quadratic":
        return (q @ k.transpose(-2, -1)) @ v / (total + eps)
    summed = k.transpose(-2, -1) @ v
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


class SimplifiedLinearAttention(nn.Module):
    """Linear attention with a ReLU kernel and a depthwise convolution on the values (SLAB, 3.3).

    Over ``(batch, h * w, channels)`` tokens of one ``grid`` (h, w). Keys have learned positions;
    the convolution (``kernel`` wide, over the ``head_dim`` channels, shared by the heads) gives
    back the rank that a linear kernel loses. Products are summed in float32. The cheaper of
    both orders is taken unless ``order`` says which.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        kernel: int = 5,
        order: Order | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        if kernel % 2 == 0:
            raise InputError(f"the kernel must be odd, got {kernel}")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.grid = grid
        tokens = grid[0] * grid[1]
        self.order: Order = order or ("linear" if tokens >= self.head_dim else "quadratic")
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position = nn.Parameter(torch.zeros(1, tokens, channels))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.local = nn.Conv2d(
            self.head_dim, self.head_dim, kernel, padding=kernel // 2, groups=self.head_dim
        )
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape; ``InputError`` for another grid."""
        batch, tokens, channels = x.shape
        if tokens != self.grid[0] * self.grid[1]:
            raise InputError(f"built for {self.grid[0]} x {self.grid[1]} tokens, got {tokens}")
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = torch.relu(q), torch.relu(k + self.position)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = linear_attention(q.float(), k.float(), v.float(), order=self.order).to(x.dtype)
        maps = v.transpose(2, 3).reshape(batch * self.num_heads, self.head_dim, *self.grid)
        local = self.local(maps).reshape(batch, self.num_heads, self.head_dim, tokens)
        out = out + local.transpose(2, 3)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, channels))
