"""Attention over parts of a cache, merged afterwards to what it is over the whole.

The combine of online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) as attention
offloading uses it (Lamina, Chen et al. 2024, arXiv:2405.01814, section 4.2): the old cache is
attended to while the new key and value are still being made, then the new pair is merged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of ``q`` (..., queries, dim) over one part, and its log of summed exponentials.

    ``k``, ``v`` (..., keys, dim); the second result is (..., queries, 1).
    """
    scores = q @ k.mT * q.shape[-1] ** -0.5
    total = scores.logsumexp(-1, keepdim=True)
    return (scores - total).exp() @ v, total


def merge(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """Results of `attend` over disjoint parts as one over all of them."""
    totals = torch.stack([t for _, t in parts])
    weights = (totals - totals.logsumexp(0)).exp()
    return (weights * torch.stack([o for o, _ in parts])).sum(0)
