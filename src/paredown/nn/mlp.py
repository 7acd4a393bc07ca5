"""Two-layer perceptrons over channels: plain, gated, and as 1x1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from paredown.nn.act import Activation, gelu, silu


class Mlp(nn.Module):
    """Linear, activation (GELU), linear on the last dimension; ``outputs`` None: ``channels``."""

    def __init__(
        self, channels: int, hidden: int, outputs: int | None = None, *, act: Activation = gelu
    ) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(channels, hidden),
            act(),
            nn.Linear(hidden, outputs or channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to ``(..., outputs)``."""
        return self.fc2(self.act(self.fc1(x)))


class GatedMlp(nn.Module):
    """``down(act(gate(x)) * up(x))`` on the last dimension (Shazeer 2020, arXiv:2002.05202).

    With SiLU it is SwiGLU, with GELU GEGLU, with a sigmoid the plain GLU.
    """

    def __init__(
        self, channels: int, hidden: int, *, act: Activation = silu, bias: bool = True
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, hidden, bias=bias)
        self.act = act()
        self.up = nn.Linear(channels, hidden, bias=bias)
        self.down = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape."""
        return self.down(self.act(self.gate(x)) * self.up(x))


class ConvMlp(nn.Module):
    """1x1 convolution, activation, 1x1 convolution: an MLP on each pixel, channels first."""

    def __init__(
        self, channels: int, hidden: int, *, act: Activation = gelu, bias: bool = True
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.act = act()
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))
