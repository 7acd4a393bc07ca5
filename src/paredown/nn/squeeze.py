"""Squeeze-and-excitation: channels gated by their global means (Hu et al. 2018, arXiv:1709.01507).

The variants differ in three details that this one module has as settings: the inner width, the
activation between the two linear maps, and the gate (sigmoid, or hard sigmoid in MobileNetV3).
"""

from __future__ import annotations

from torch import Tensor, nn

from paredown.nn.act import Activation, relu, sigmoid


class SqueezeExcite(nn.Module):
    """Global mean, 1x1 down to ``inner``, activation, 1x1 back, gate, product."""

    def __init__(
        self,
        channels: int,
        inner: int,
        *,
        act: Activation = relu,
        gate: Activation = sigmoid,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, inner, 1, bias=bias)
        self.act = act()
        self.expand = nn.Conv2d(inner, channels, 1, bias=bias)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
