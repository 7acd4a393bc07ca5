"""ConvNeXt's block (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.nn.drop import drop_path
from paredown.nn.norm import LayerNorm2d

__all__ = ["ConvNeXtBlock", "LayerNorm2d"]


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, 1x1 to four times the width, GELU, 1x1 back, scale, residual.

    The two pointwise convolutions are linears over channels-last data, as in the paper's code.
    ``drop`` is the rate of stochastic depth.
    """

    def __init__(
        self, channels: int, *, expand: int = 4, scale: float = 1e-6, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1, self.act = nn.Linear(channels, expand * channels), nn.GELU()
        self.fc2 = nn.Linear(expand * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(self.act(self.fc1(y)))
        return x + self.drop(y.permute(0, 3, 1, 2))
