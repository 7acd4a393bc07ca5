"""ContMix, OverLoCK's dynamic convolution: kernels from affinities to a pooled context.

Lou & Yu 2025, arXiv:2502.20087, section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.conv import ConvNormAct
from paredown.nn.dynamic import neighbourhood_sum, window_starts

REGIONS = 7
"""The context is pooled to 7 x 7 region centres."""


class ContMix(nn.Module):
    """Half the channels under a ``small`` dynamic kernel per position, half under a ``large`` one.

    ``mixed`` is convolved; queries come from ``local`` (as many channels), keys from ``context``.
    The affinity of a position with each region centre, projected, gives its kernel's logits per
    group; they are softmaxed over the taps. Maps smaller than the kernel are enlarged to it and the
    result is averaged back, as in the authors' code. Raises ``InputError`` where the groups do not
    divide a quarter of the channels.
    """

    def __init__(
        self, channels: int, context: int, num_heads: int, large: int, *, small: int = 5
    ) -> None:
        super().__init__()
        groups = 2 * num_heads
        if channels % (2 * groups):
            raise InputError(
                f"{channels} channels do not divide into {groups} groups of two halves"
            )
        self.groups, self.sides = groups, (small, large)
        self.scale = (channels // groups) ** -0.5
        self.query = ConvNormAct(channels, channels // 2, act=None)
        self.key = ConvNormAct(context, channels // 2, act=None)
        self.kernel = nn.Conv2d(REGIONS * REGIONS, small**2 + large**2, 1)
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(groups, 2 * side - 1, 2 * side - 1)) for side in self.sides
        )

    def kernels(self, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The small and the large kernels: ``(batch, groups, h, w, taps)``, summing to one."""
        batch, _, h, w = local.shape
        query = (self.query(local) * self.scale).reshape(batch, self.groups, -1, h * w)
        key = self.key(F.adaptive_avg_pool2d(context, REGIONS)).reshape(batch, self.groups, -1, 49)
        affinity = key.transpose(2, 3) @ query
        logits = self.kernel(affinity.transpose(1, 2)).permute(0, 2, 3, 1)
        logits = logits.reshape(batch, self.groups, h, w, -1)
        small, large = logits.split([s * s for s in self.sides], dim=-1)
        biases = [position_bias(b, h, w) for b in self.biases]
        return (small + biases[0]).softmax(-1), (large + biases[1]).softmax(-1)

    def forward(self, mixed: Tensor, local: Tensor, context: Tensor) -> Tensor:
        """All ``(batch, channels or context, h, w)``; returns the shape of ``mixed``."""
        size = (mixed.shape[2], mixed.shape[3])
        grown = enlarged(size, max(self.sides))
        if grown != size:
            mixed, local, context = (
                F.interpolate(t, size=grown, mode="bilinear") for t in (mixed, local, context)
            )
        halves = mixed.reshape(mixed.shape[0], 2, self.groups, -1, *grown).unbind(1)
        kernels = self.kernels(local, context)
        out = torch.cat(
            [
                neighbourhood_sum(half, kernel, side).flatten(1, 2)
                for half, kernel, side in zip(halves, kernels, self.sides, strict=True)
            ],
            1,
        )
        return out if grown == size else F.adaptive_avg_pool2d(out, size)


def enlarged(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size itself, or grown in proportion until its smaller side is ``side``."""
    h, w = size
    if min(size) >= side:
        return size
    return (side, side * w // h) if h < w else (side * h // w, side)


def position_bias(table: Tensor, h: int, w: int) -> Tensor:
    """The bias of each tap by its offset from the position: ``(groups, h, w, taps)``.

    ``table`` is ``(groups, 2 side - 1, 2 side - 1)``; at the border, where the window is moved
    inside, offsets reach to ``side - 1``.
    """
    side = (table.shape[-1] + 1) // 2
    taps = torch.arange(side)
    rows = (window_starts(h, side) - torch.arange(h) + side - 1)[:, None] + taps
    columns = (window_starts(w, side) - torch.arange(w) + side - 1)[:, None] + taps
    index = rows[:, None, :, None] * table.shape[-1] + columns[None, :, None, :]
    flat = table.flatten(1)[:, index.reshape(-1).to(table.device)]
    return flat.reshape(table.shape[0], h, w, side * side)
