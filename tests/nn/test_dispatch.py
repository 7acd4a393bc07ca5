"""Dispatch of tokens to experts: tables and one-hot products give the same numbers, bit by bit."""

from __future__ import annotations

import pytest
import torch

from paredown.errors import InputError
from paredown.nn.dispatch import (
    combine_one_hot,
    combine_table,
    dispatch_one_hot,
    dispatch_table,
    one_hot_mask,
    seats,
)


@pytest.mark.parametrize(("tokens", "experts", "capacity"), [(1, 1, 1), (17, 3, 5), (63, 8, 63)])
def test_both_ways_are_the_same(tokens: int, experts: int, capacity: int) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(tokens, 7), torch.rand(tokens)
    expert = torch.randint(experts, (tokens,))
    mask = one_hot_mask(expert, experts, capacity, x.dtype)
    there = dispatch_table(x, expert, experts, capacity)
    assert torch.equal(there, dispatch_one_hot(x, mask))
    y = there * torch.arange(1, experts + 1)[:, None, None]
    back = combine_table(y, expert, gate)
    assert torch.equal(back, combine_one_hot(y, mask, gate))
    _, kept = seats(expert, experts, capacity)
    assert torch.equal(
        back, torch.where(kept[:, None], x * (expert + 1)[:, None], 0) * gate[:, None]
    )


def test_seats_are_taken_in_order_and_the_late_are_dropped() -> None:
    seat, kept = seats(torch.tensor([2, 0, 2, 2, 0]), 3, 2)
    assert seat.tolist() == [0, 0, 1, 2, 1]
    assert kept.tolist() == [True, True, True, False, True]
    with pytest.raises(InputError, match="at least one token"):
        seats(torch.tensor([0]), 1, 0)
