"""Partial convolution: a dense convolution of the first channels only (FasterNet, 2303.03667)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError


class PartialConv(nn.Module):
    """A 3x3 convolution of the first ``channels * share`` channels; the rest pass untouched.

    Chen et al. 2023, section 3.2: at share 1/4 it costs 1/16 of the full convolution and touches
    a quarter of the memory. Raises ``InputError`` where the share leaves no channel.
    """

    def __init__(self, channels: int, *, share: float = 0.25, kernel: int = 3) -> None:
        super().__init__()
        self.convolved = int(channels * share)
        if not 1 <= self.convolved <= channels:
            raise InputError(f"share {share} of {channels} channels leaves none to convolve")
        self.rest = channels - self.convolved
        self.conv = nn.Conv2d(
            self.convolved, self.convolved, kernel, padding=kernel // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        head, rest = x.split((self.convolved, self.rest), 1)
        return torch.cat((self.conv(head), rest), 1)
