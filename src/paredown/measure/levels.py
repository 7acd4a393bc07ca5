"""Memory levels from a read sweep: bandwidth by working set, cut where it falls.

The curve is fitted by a few constant steps (least squares of its logarithm, by dynamic
programming); a step is added only while it explains more than it costs. No cache size is assumed:
in a virtual machine the advertised one is often another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MAX_LEVELS = 5
PENALTY = 0.02
"""Squared log error that one more level must save: a step of 20 % over a single size is none."""


@dataclass(frozen=True)
class Step:
    """One level of the sweep: it holds working sets up to ``capacity_bytes``."""

    capacity_bytes: int
    bytes_s: float


def sizes(last: int, smallest: int = 16 << 10) -> list[int]:
    """Working sets from ``smallest`` to at least ``last``, two per doubling, in whole 4 KiB."""
    count = 2 * math.ceil(math.log2(last / smallest)) + 1
    return [round(smallest * 2 ** (i / 2) / 4096) * 4096 for i in range(count)]


def knees(working_sets: Sequence[int], bytes_s: Sequence[float]) -> list[Step]:
    """Steps of a sweep, nearest first; rates fall from step to step.

    A larger working set cannot be read faster than a smaller one, so a dip below a later value is
    noise and is lifted to it first.
    """
    rates = np.maximum.accumulate(np.asarray(bytes_s, dtype=float)[::-1])[::-1]
    logs = np.log(rates)
    n = len(logs)
    best = {k: _fit(logs, k) for k in range(1, min(MAX_LEVELS, n) + 1)}
    k = min(best, key=lambda k: best[k][0] + PENALTY * k)
    bounds = [*best[k][1], n]
    return [
        Step(int(working_sets[end - 1]), float(np.exp(logs[start:end].mean())))
        for start, end in pairwise(bounds)
    ]


def _fit(values: np.ndarray, k: int) -> tuple[float, list[int]]:
    """Least squares by ``k`` constant pieces: the error and where each piece starts."""
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(values**2)])

    def error(i: int, j: int) -> float:
        total = sums[j] - sums[i]
        return float(squares[j] - squares[i] - total * total / (j - i))

    cost = [[math.inf] * (n + 1) for _ in range(k + 1)]
    cut = [[0] * (n + 1) for _ in range(k + 1)]
    cost[0][0] = 0.0
    for pieces in range(1, k + 1):
        for j in range(pieces, n + 1):
            for i in range(pieces - 1, j):
                candidate = cost[pieces - 1][i] + error(i, j)
                if candidate < cost[pieces][j]:
                    cost[pieces][j], cut[pieces][j] = candidate, i
    starts: list[int] = []
    j = n
    for pieces in range(k, 0, -1):
        j = cut[pieces][j]
        starts.append(j)
    return cost[k][n], starts[::-1]


def name_steps(steps: Sequence[Step], caches: dict[str, int]) -> list[str]:
    """A name per step: the cache that it fits into (1.5 x its size), the last one ``memory``.

    Two steps within one cache are told apart by size (``L3 to 24 MiB``).
    """
    ordered = sorted(caches.items(), key=lambda item: item[1])
    names: list[str] = []
    for i, step in enumerate(steps):
        fitting = [n for n, size in ordered if step.capacity_bytes <= 1.5 * size]
        names.append("memory" if i == len(steps) - 1 else fitting[0] if fitting else "cache")
    shared = {name for name in names if names.count(name) > 1}
    for i, name in enumerate(names):
        if name in shared:
            names[i] = f"{name} to {steps[i].capacity_bytes / (1 << 20):.3g} MiB"
    return names
