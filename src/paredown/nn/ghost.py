"""Ghost module: part of the features by a cheap depthwise map of the rest (arXiv:1911.11907)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paredown.nn.act import Activation, relu
from paredown.nn.conv import ConvNormAct


class GhostModule(nn.Module):
    """A convolution to ``ceil(outputs / ratio)`` channels, depthwise maps of these, concatenated.

    Han et al. 2020, section 3.1; cut to ``outputs`` channels where the ratio does not divide them.
    ``act=None`` makes both parts linear.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        ratio: int = 2,
        cheap_kernel: int = 3,
        stride: int = 1,
        act: Activation | None = relu,
    ) -> None:
        super().__init__()
        primary = math.ceil(outputs / ratio)
        self.outputs = outputs
        self.primary = ConvNormAct(inputs, primary, kernel, stride=stride, act=act)
        self.cheap = ConvNormAct(
            primary, primary * (ratio - 1), cheap_kernel, groups=primary, act=act
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        primary = self.primary(x)
        both = torch.cat((primary, self.cheap(primary)), 1)
        return both if both.shape[1] == self.outputs else both[:, : self.outputs]
