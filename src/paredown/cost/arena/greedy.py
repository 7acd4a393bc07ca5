"""Places by order and fit: fast, never certain. Greedy-by-size (arXiv:2001.03288) is one of them.

Each order puts one buffer after the other where it fits among those placed before: at the lowest
free offset, or in the smallest gap that holds it (best fit, as the offset calculation of the paper
does it).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from paredown.cost.arena.problem import Problem

Key = Callable[[int], tuple[float, ...]]


def orders(p: Problem) -> dict[str, list[int]]:
    """Orders by name; ``size`` is greedy-by-size: the largest first, equal ones by start."""
    width = [b - a for a, b in zip(p.start, p.stop, strict=True)]
    # The load of the fullest section that a buffer lives in: what is tight is placed early.
    tight = [max(p.loads[a:b], default=0) for a, b in zip(p.start, p.stop, strict=True)]
    keys: dict[str, Key] = {
        "size": lambda i: (-p.size[i], p.start[i]),
        "area": lambda i: (-p.size[i] * width[i], -p.size[i]),
        "lifetime": lambda i: (-width[i], -p.size[i]),
        "tight, size": lambda i: (-tight[i], -p.size[i], p.start[i]),
        "tight, lifetime": lambda i: (-tight[i], -width[i], -p.size[i]),
        "tight, area": lambda i: (-tight[i], -p.size[i] * width[i]),
        "start": lambda i: (p.start[i], -width[i], -p.size[i]),
        "end": lambda i: (-p.stop[i], -width[i], -p.size[i]),
    }
    every = range(len(p.size))
    return {name: sorted(every, key=key) for name, key in keys.items()}


def fill(p: Problem, order: Sequence[int], *, best_fit: bool = False) -> list[int]:
    """Offsets by index: each buffer of ``order`` in a gap over its whole lifetime.

    The lowest gap that is large enough, or with ``best_fit`` the smallest such gap; above all of
    its neighbours where there is none.
    """
    offsets = [-1] * len(p.size)
    for i in order:
        taken = ((offsets[j], offsets[j] + p.size[j]) for j in p.beside[i] if offsets[j] >= 0)
        found = gaps(taken, p.size[i], sys.maxsize)
        offsets[i] = (min(found) if best_fit else next(found))[1]
    return offsets


def gaps(taken: Iterable[tuple[int, int]], size: int, top: int) -> Iterator[tuple[int, int]]:
    """``(width, offset)`` of the gaps below ``top`` that hold ``size`` bytes, the lowest first."""
    at = 0
    for low, high in (*sorted(taken), (top, top)):
        if low - at >= size:
            yield low - at, at
        at = max(at, high)


def squeezed(p: Problem, order: Sequence[int], rounds: int) -> Iterator[list[int]]:
    """Places whose order learns from the last ones: what stuck out above the load comes earlier.

    Squeaky wheel optimization (Joslin & Clements 1999, arXiv:1105.5454): each buffer that ends
    above the aim moves forward by the share it sticks out, plus one place.
    """
    n, aim = len(order), p.load
    rank = [0.0] * n
    for at, i in enumerate(order):
        rank[i] = float(at)
    for _ in range(rounds):
        offsets = fill(p, sorted(range(n), key=lambda i: (rank[i], i)))
        yield offsets
        over = [offsets[i] + p.size[i] - aim for i in range(n)]
        most = max(over, default=0)
        if most <= 0:
            return
        for i in range(n):
            if over[i] > 0:
                rank[i] -= 1 + 0.25 * n * over[i] / most


def by_size(p: Problem) -> list[int]:
    """Greedy-by-size: what runtimes ship, and what a placement here is never worse than."""
    return fill(p, orders(p)["size"])


def candidates(p: Problem) -> Iterator[tuple[str, list[int]]]:
    """Every order with both fits, greedy-by-size first."""
    for name, order in orders(p).items():
        for best_fit in (False, True):
            yield f"{name}{', best fit' if best_fit else ''}", fill(p, order, best_fit=best_fit)
