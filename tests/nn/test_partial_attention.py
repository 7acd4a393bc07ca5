"""Attention in parts: merged it is what it is over the whole, however the cache is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from paredown.nn.partial_attention import attend, merge


@pytest.mark.parametrize("cuts", [(), (1,), (16,), (3, 4, 11)])
def test_merged_parts_are_the_whole(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 17, 8) * 4, torch.randn(2, 3, 17, 6)
    truth = F.scaled_dot_product_attention(q, k, v)
    edges = [0, *cuts, 17]
    parts = [attend(q, k[..., a:b, :], v[..., a:b, :]) for a, b in pairwise(edges)]
    assert torch.allclose(merge(*parts), truth, atol=1e-6)
    assert torch.allclose(merge(*reversed(parts)), truth, atol=1e-6)
