"""ConvNeXt's block and channels-first layer norm (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(batch, channels, h, w)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each pixel's channels."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, 1x1 to four times the width, GELU, 1x1 back, scale, residual.

    The two pointwise convolutions are linears over channels-last data, as in the paper's code.
    """

    def __init__(self, channels: int, *, expand: int = 4, scale: float = 1e-6) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1, self.act = nn.Linear(channels, expand * channels), nn.GELU()
        self.fc2 = nn.Linear(expand * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(self.act(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)
