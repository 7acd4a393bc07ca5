"""Tokens to experts and back: by one-hot products, and by a table of indices.

DeepSpeed-Inference (Aminabadi et al. 2022, arXiv:2207.00032), section V-C: the einsum over a
one-hot ``(tokens, experts, capacity)`` mask costs tokens x experts x hidden x capacity products of
which almost all are by zero; a table of who sits where moves the same rows without any.

Each token goes to one expert; those past an expert's ``capacity`` are dropped (their result is 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.errors import InputError


def seats(expert: Tensor, experts: int, capacity: int) -> tuple[Tensor, Tensor]:
    """``(seat, kept)`` of every token: its place at its expert by arrival, and whether it has one.

    ``expert`` (tokens,) holds indices below ``experts``.
    """
    if capacity < 1:
        raise InputError(f"an expert seats at least one token, got {capacity}")
    taken = torch.nn.functional.one_hot(expert, experts)
    seat = (taken.cumsum(0) - 1).gather(1, expert[:, None])[:, 0]
    return seat, seat < capacity


def one_hot_mask(expert: Tensor, experts: int, capacity: int, dtype: torch.dtype) -> Tensor:
    """``(tokens, experts, capacity)`` with a one where a token sits."""
    seat, kept = seats(expert, experts, capacity)
    mask = torch.zeros(len(expert), experts, capacity, dtype=dtype, device=expert.device)
    at = kept.nonzero()[:, 0]
    mask[at, expert[at], seat[at]] = 1
    return mask


def dispatch_one_hot(x: Tensor, mask: Tensor) -> Tensor:
    """Rows of ``x`` (tokens, hidden) as ``(experts, capacity, hidden)``, by a product."""
    return torch.einsum("sec,sm->ecm", mask, x)


def combine_one_hot(y: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
    """Results back in the tokens' order, times ``gate`` (tokens,), by a product with the mask."""
    return torch.einsum("sec,ecm->sm", mask, y) * gate[:, None]


def dispatch_table(x: Tensor, expert: Tensor, experts: int, capacity: int) -> Tensor:
    """The same rows by index: each is copied once, empty seats are zero."""
    seat, kept = seats(expert, experts, capacity)
    rows = x.new_zeros(experts * capacity + 1, x.shape[1])
    # Dropped tokens share a row that is cut off.
    at = torch.where(kept, expert * capacity + seat, experts * capacity)
    rows[at] = x
    return rows[:-1].view(experts, capacity, x.shape[1])


def combine_table(y: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
    """The same results by index; ``y`` is (experts, capacity, hidden)."""
    experts, capacity = y.shape[:2]
    seat, kept = seats(expert, experts, capacity)
    at = torch.where(kept, expert * capacity + seat, 0)
    rows = y.flatten(0, 1)[at] * gate[:, None]
    return torch.where(kept[:, None], rows, 0)
