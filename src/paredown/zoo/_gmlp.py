"""MAXIM's mixing over grids and blocks: gated MLPs along both axes (arXiv:2201.02973, 3.2).

All maps are ``(batch, h, w, channels)``. Over a *grid* of ``n x n`` cells, pixels at one place in
every cell mix: global and dilated. Over *blocks* of ``n x n`` pixels, the pixels of a block mix:
local. Both are linear in the number of pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paredown.nn.act import gelu_tanh

Axis = Literal["grid", "block"]


def to_cells(x: Tensor, rows: int, columns: int) -> Tensor:
    """A map cut into cells of ``rows x columns`` pixels: ``(batch, cells, pixels, channels)``."""
    batch, h, w, channels = x.shape
    x = x.reshape(batch, h // rows, rows, w // columns, columns, channels)
    return x.transpose(2, 3).reshape(batch, -1, rows * columns, channels)


def from_cells(x: Tensor, rows: int, columns: int, h: int, w: int) -> Tensor:
    """The inverse of :func:`to_cells`."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, h // rows, w // columns, rows, columns, channels)
    return x.transpose(2, 3).reshape(batch, h, w, channels)


class AxisLinear(nn.Linear):
    """One linear map over the ``size * size`` cells of a grid, or over the pixels of each block.

    ``(batch, h, w, channels)`` to the same shape, the same map for every channel.
    """

    def __init__(self, axis: Axis, size: int, bias: float = 0.0) -> None:
        super().__init__(size * size, size * size)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.constant_(self.bias, bias)
        self.axis, self.size = axis, size

    def forward(self, input: Tensor) -> Tensor:
        """Mix along the axis."""
        _, h, w, _ = input.shape
        n = self.size
        rows, columns = (n, n) if self.axis == "block" else (h // n, w // n)
        cells = to_cells(input, rows, columns)
        along = 2 if self.axis == "block" else 1
        mixed = super().forward(cells.transpose(along, -1)).transpose(along, -1)
        return from_cells(mixed, rows, columns, h, w)


class AxisGmlp(nn.Module):
    """A gated MLP along one axis, on a residual (gMLP, arXiv:2105.08050; MAXIM's appendix A.1)."""

    def __init__(self, channels: int, axis: Axis, size: int, factor: int = 2) -> None:
        super().__init__()
        inner = channels * factor // 2
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.enter, self.act = nn.Linear(channels, channels * factor), gelu_tanh()
        self.gate_norm, self.gate = nn.LayerNorm(inner, eps=1e-6), AxisLinear(axis, size)
        self.leave = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        u, v = self.act(self.enter(self.norm(x))).chunk(2, -1)
        return x + self.leave(u * (self.gate(self.gate_norm(v)) + 1))


class MultiAxisGmlp(nn.Module):
    """Half of the doubled channels mixed over the grid, half over blocks (figure 3).

    ``axes`` leaves one of the two out: its half then passes as it is.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        factor: int = 2,
        *,
        axes: tuple[Axis, ...] = ("grid", "block"),
    ) -> None:
        super().__init__()
        inner = channels * factor // 2
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.enter, self.act = nn.Linear(channels, channels * factor), gelu_tanh()
        self.grid = AxisGmlp(inner, "grid", size) if "grid" in axes else nn.Identity()
        self.block = AxisGmlp(inner, "block", size) if "block" in axes else nn.Identity()
        self.leave = nn.Linear(channels * factor, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        u, v = self.act(self.enter(self.norm(x))).chunk(2, -1)
        return x + self.leave(torch.cat((self.grid(u), self.block(v)), -1))


class MultiAxisGate(nn.Module):
    """The weights with which one signal gates another: as above, without units and residuals."""

    def __init__(self, channels: int, size: int, factor: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.enter, self.act = nn.Linear(channels, channels * factor), gelu_tanh()
        self.grid = AxisLinear("grid", size, bias=1.0)
        self.block = AxisLinear("block", size, bias=1.0)
        self.leave = nn.Linear(channels * factor, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        u, v = self.act(self.enter(self.norm(x))).chunk(2, -1)
        return self.leave(torch.cat((self.grid(u), self.block(v)), -1))


class CrossGate(nn.Module):
    """Two signals gate each other and are added (figure 4, the cross-gating block).

    ``inputs`` are the channels of both; ``grow`` first doubles the second's sides.
    """

    def __init__(
        self, inputs: tuple[int, int], channels: int, size: int, *, grow: bool = False
    ) -> None:
        super().__init__()
        first, second = inputs
        self.grow = nn.ConvTranspose2d(second, channels, 2, 2) if grow else None
        self.in_x, self.in_y = (
            nn.Linear(first, channels),
            nn.Linear(channels if grow else second, channels),
        )
        self.norm_x, self.norm_y = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.enter_x, self.enter_y = (nn.Linear(channels, channels) for _ in range(2))
        self.gate_x, self.gate_y = (MultiAxisGate(channels, size) for _ in range(2))
        self.leave_x, self.leave_y = (nn.Linear(channels, channels) for _ in range(2))
        self.act = gelu_tanh()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The fused first signal and the gated second, ``(batch, h, w, channels)`` each."""
        if self.grow is not None:
            y = self.grow(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x, y = self.in_x(x), self.in_y(y)
        inner_x = self.act(self.enter_x(self.norm_x(x)))
        inner_y = self.act(self.enter_y(self.norm_y(y)))
        new_y = y + self.leave_y(inner_y * self.gate_x(inner_x))
        new_x = x + new_y + self.leave_x(inner_x * self.gate_y(inner_y))
        return new_x, new_y
