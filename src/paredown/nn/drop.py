"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a residual branch left out at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError


class DropPath(nn.Module):
    """While training, each example's branch is zero with probability ``rate``, else grown to match.

    In evaluation, or at rate 0, the identity. Raises ``InputError`` for a rate outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"a drop path rate lies in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...)`` to the same shape; the expected value is kept."""
        if not self.training or not self.rate:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = torch.rand(shape, dtype=x.dtype, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth of a rate; the plain identity at rate 0, which leaves no operator behind."""
    return DropPath(rate) if rate else nn.Identity()


def rising_rates(highest: float, depth: int) -> list[float]:
    """The paper's linear rule: rate 0 in the first of ``depth`` blocks, ``highest`` in the last."""
    return [highest * i / max(depth - 1, 1) for i in range(depth)]
