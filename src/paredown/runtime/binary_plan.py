"""A spanning tree as the kernels walk it: for each channel its parent and the inputs that differ
("MST-compression", Vo et al. 2023, arXiv:2308.13735, eq. 3; ``kernels/cpp/signs``).

With the disagreements ``q`` of a channel's signs with a row's, ``q_k = q_j + 2 s - |D|``, where s
are those of k within the inputs D in which it differs from its parent j; a sum is ``n - 2 q``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError
from paredown.runtime.binary_tree import Tree, signs

LIST = 8
"""Lists of inputs are filled up to multiples of this: adders take so many at a time."""


@dataclass(frozen=True)
class Plan:
    """Steps ``(channels, 7)`` and lists, int32, as ``signs.hpp`` describes them.

    Rows to be multiplied hold ``words`` words, which hold ``inputs`` signs.
    """

    steps: NDArray[np.int32]
    lists: NDArray[np.int32]
    words: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes that the kernels read beside the rows."""
        return self.steps.nbytes + self.lists.nbytes


def plan(weight: NDArray[Any], tree: Tree | None, columns: NDArray[np.int64] | None = None) -> Plan:
    """Along a tree, or of every channel by itself where there is none.

    ``columns`` says at which bit of a row an input stands; by default in order. Raises
    ``InputError`` for a tree with negated channels, or another weight's.
    """
    w = signs(weight)
    count, inputs = w.shape
    if tree is not None and (len(tree.parent), tree.inputs) != w.shape:
        raise InputError(f"a tree of {len(tree.parent)} channels for a weight of {w.shape}")
    if tree is not None and any(tree.negated):
        raise InputError("a plan takes a tree without negated channels")
    at = np.arange(inputs) if columns is None else columns
    words = -(-(int(at.max()) + 1) // 64)
    order = range(count) if tree is None else tree.order
    behind = np.zeros(count, dtype=np.int64)
    steps, lists, length = np.zeros((count, 7), dtype=np.int32), [np.zeros(0, np.int64)], 0
    for i, k in enumerate(order):
        parent = -1 if tree is None else tree.parent[k]
        differs = np.ones(inputs, dtype=bool) if parent < 0 else w[k] != w[parent]
        plus = _filled(at[differs & (w[k] > 0)], words * 64)
        minus = _filled(at[differs & (w[k] < 0)], words * 64 + 1)
        size = int(differs.sum())
        behind[k] = 0 if parent < 0 else behind[parent] + size
        steps[i] = (k, parent, plus.size, minus.size, length, size, behind[k])
        lists += [plus, minus]
        length += plus.size + minus.size
    return Plan(steps, np.concatenate(lists).astype(np.int32), words, inputs)


def sums(given: Plan, rows: NDArray[np.uint64]) -> NDArray[np.int32]:
    """``(channels, rows)`` of packed rows ``(rows, words)`` in the plan's order: the reference."""
    if rows.ndim != 2 or rows.shape[1] != given.words:
        raise InputError(f"rows of {given.words} words, got {rows.shape}")
    bits = np.unpackbits(np.ascontiguousarray(rows).view(np.uint8), axis=1, bitorder="little")
    x = np.zeros((bits.shape[1] + 2, len(rows)), dtype=np.int32)
    x[:-2] = 1 - 2 * bits.T.astype(np.int32)
    out = np.empty((len(given.steps), len(rows)), dtype=np.int32)
    for channel, parent, plus, minus, first, _, _ in given.steps:
        middle = first + plus
        added = x[given.lists[first:middle]].sum(0, dtype=np.int32)
        taken = x[given.lists[middle : middle + minus]].sum(0, dtype=np.int32)
        out[channel] = added - taken if parent < 0 else out[parent] + 2 * (added - taken)
    return out


def _filled(places: NDArray[np.int64], nothing: int) -> NDArray[np.int64]:
    return np.concatenate([places, np.full(-places.size % LIST, nothing, dtype=np.int64)])
