"""Blocks whose spatial part has no parameters (Han et al. 2022, arXiv:2202.02777).

A 3x3 max-pool stands where a ResNet bottleneck has its 3x3 convolution (the "efficient
bottleneck", figure 2) or where a transformer block has its self-attention (section 4.3).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.conv import ConvNormAct, projection, relu

Spatial = Literal["max", "hybrid"]


class PooledBottleneck(nn.Module):
    """1x1, 3x3 max-pool (strided), 1x1 around a skip; no norm after the pool.

    ``spatial`` "hybrid" keeps a trained 3x3 convolution, behind a 2x2 average pool, in blocks that
    halve the map; "max" pools there too.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        *,
        stride: int = 1,
        spatial: Spatial = "hybrid",
    ) -> None:
        super().__init__()
        if spatial == "hybrid" and stride > 1:
            # Ceil, as a strided 3x3 convolution would halve an odd map.
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
            mix: nn.Module = nn.Sequential(pool, ConvNormAct(inner, inner, 3))
        else:
            mix = nn.MaxPool2d(3, stride, 1)
        self.body = nn.Sequential(
            ConvNormAct(inputs, inner), mix, ConvNormAct(inner, outputs, act=None)
        )
        self.skip = projection(inputs, outputs, stride)
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        return self.act(self.body(x) + self.skip(x))


class PooledMixer(nn.Module):
    """In place of self-attention: linear to ``ratio`` times the width, GELU, pool, GELU, linear.

    Over ``(batch, h * w, channels)`` tokens of one ``grid`` (h, w), without a class token.
    """

    def __init__(self, channels: int, grid: tuple[int, int], *, ratio: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.expand = nn.Linear(channels, ratio * channels)
        self.act = nn.GELU()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.project = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape; ``InputError`` for another grid."""
        if x.shape[1] != self.grid[0] * self.grid[1]:
            raise InputError(f"built for {self.grid[0]} x {self.grid[1]} tokens, got {x.shape[1]}")
        maps = self.act(self.expand(x)).transpose(1, 2).unflatten(2, self.grid)
        mixed = self.act(self.pool(maps).flatten(2).transpose(1, 2))
        return self.project(mixed)
