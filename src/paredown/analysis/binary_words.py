"""Products of +-1 vectors as XNOR and popcount over packed words (Rastegari et al. 2016,
"XNOR-Net", arXiv:1603.05279, section 3.2): ``n - 2 * popcount(a xor w)``, 64 products to a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError

Words = NDArray[np.uint64]
BLOCK = 1 << 16
"""Words of a block of results: it stays in L2 between xor, count and sum."""


def packed(x: NDArray[Any]) -> Words:
    """Signs ``(rows, n)`` as words ``(rows, ceil(n / 64))``, a set bit for each negative value."""
    if x.ndim != 2:
        raise InputError(f"rows of signs are packed, got {x.ndim} dimensions")
    bits = np.packbits(x < 0, axis=1)
    whole = np.zeros((len(x), -(-x.shape[1] // 64) * 8), dtype=np.uint8)
    whole[:, : bits.shape[1]] = bits
    return whole.view(np.uint64)


def products(a: Words, w: Words, n: int) -> NDArray[np.int64]:
    """``(rows, channels)`` of packed rows and packed channels over ``n`` inputs, exact.

    Raises ``InputError`` where the words do not hold ``n`` inputs.
    """
    words = -(-n // 64)
    if a.shape[1] != words or w.shape[1] != words:
        raise InputError(f"{n} inputs are {words} words, got {a.shape[1]} and {w.shape[1]}")
    out = np.empty((len(a), len(w)), dtype=np.int64)
    step = max(1, BLOCK // max(1, words))
    for first in range(0, len(a), step):
        rows = a[first : first + step]
        for k, channel in enumerate(w):
            differ = np.bitwise_count(rows ^ channel).sum(axis=1, dtype=np.int64)
            out[first : first + step, k] = n - 2 * differ
    return out
