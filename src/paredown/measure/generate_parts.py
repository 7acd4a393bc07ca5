"""Parts of the operators that paredown makes up: sizes drawn log-uniform, chains of layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

MOST_MACS = 4e8
"""Of one layer; MOST_ELEMENTS of one tensor: what keeps a chain's run below a tenth of a second."""
MOST_ELEMENTS = 1 << 22
MOST_WEIGHTS = 40_000_000
"""Of a product as wide as a vocabulary."""


class Each(nn.Module):
    """A function applied again and again, each time through a module of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """``function(x)``."""
        return self.function(x)


class Beside(nn.Module):
    """The sum of layers that all read the same input: for layers that change its shape."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """``layers[0](x) + layers[1](x) + ...``."""
        total = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            total = total + layer(x)
        return total


class Chain(nn.Module):
    """Layers one after the other; of a layer that gives several results the first goes on."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's result."""
        for layer in self.layers:
            x = layer(x)
            if isinstance(x, tuple):
                x = x[0]
        return x


Drawn = tuple["list[nn.Module] | Beside", Tensor]


def draw_size(r: Random, low: float, high: float) -> int:
    """A whole number, uniform in its logarithm."""
    return round(math.exp(r.uniform(math.log(low), math.log(high))))


def draw_width(r: Random, low: int, high: int) -> int:
    """Channels: mostly multiples of 8, as networks have them."""
    step = 8 if r.random() < 0.85 else 1
    return max(step * round(draw_size(r, low, high) / step), min(low, step))


def noise(*shape: int) -> Tensor:
    """Normal numbers of deviation 0.1."""
    return torch.randn(shape).mul_(0.1)


def draw_image(r: Random, channels: int, side: int, batch: int, last: float = 0.2) -> Tensor:
    """``(batch, channels, side, side)``; a share ``last`` of them lie channels last."""
    x = noise(batch, channels, side, side)
    return x.to(memory_format=torch.channels_last) if r.random() < last else x


def draw_batch(r: Random) -> int:
    """Examples: half of the draws are one."""
    return r.choice((1, 1, 1, 2, 4, 8))
