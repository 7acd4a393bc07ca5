"""Products of signs as XNOR and popcount, as operators ("XNOR-Net", Rastegari et al. 2016,
arXiv:1603.05279, section 3.2): ``n - 2 * popcount(a xor w)``, 64 products to a word.

A sign is a bit, set for -1; 64 stand in an int64 word, the first lowest, and what a row's last word
has no sign for is zero. All results are exact integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paredown.errors import InputError

BLOCK = 1 << 16
"""Words of a block of results of the reference: it stays in L2 between xor, count and sum."""


@torch.library.custom_op("paredown::pack_signs", mutates_args=())
def pack_signs(x: Tensor, threshold: Tensor) -> Tensor:
    """``(..., n)`` floats to int64 words ``(..., ceil(n / 64))``, a set bit where x < threshold.

    ``threshold`` is ``(n,)`` float32. A NaN is below nothing: it counts as +1.
    """
    return as_words(packed_bits(x.float() < threshold))


@pack_signs.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], -(-x.shape[-1] // 64)), dtype=torch.int64)


@torch.library.custom_op("paredown::binary_product", mutates_args=())
def binary_product(a: Tensor, w: Tensor, n: int) -> Tensor:
    """``(rows, channels)`` int32 of packed rows and packed channels over ``n`` signs each.

    Raises ``InputError`` where both have not the same words, or too few for ``n``.
    """
    if a.ndim != 2 or w.ndim != 2 or a.shape[1] != w.shape[1] or not 0 < n <= 64 * a.shape[1]:
        raise InputError(f"words of {n} signs, got {tuple(a.shape)} and {tuple(w.shape)}")
    out = np.empty((a.shape[0], w.shape[0]), dtype=np.int32)
    rows, channels = _words(a), _words(w)
    step = max(1, BLOCK // a.shape[1])
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        for k, channel in enumerate(channels):
            differ = np.bitwise_count(some ^ channel).sum(axis=1, dtype=np.int32)
            out[first : first + step, k] = n - 2 * differ
    return torch.from_numpy(out).to(a.device)


@binary_product.register_fake
def _(a: Tensor, w: Tensor, n: int) -> Tensor:
    return a.new_empty((a.shape[0], w.shape[0]), dtype=torch.int32)


def packed_bits(bits: Tensor) -> Tensor:
    """Booleans ``(..., n)`` as uint8 ``(..., ceil(n / 8))``, the first lowest."""
    whole = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    at = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (whole * at).sum(-1, dtype=torch.uint8)


def as_words(packed: Tensor) -> Tensor:
    """Packed bytes ``(..., b)`` as int64 words ``(..., ceil(b / 8))``."""
    return F.pad(packed, (0, -packed.shape[-1] % 8)).contiguous().view(torch.int64)


def _words(t: Tensor) -> NDArray[Any]:
    return t.detach().cpu().contiguous().numpy().view(np.uint64)
