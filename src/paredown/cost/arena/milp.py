"""Places by an integer program, solved by HiGHS: a second way to the optimum and its bound.

Minimise ``H`` over offsets ``o_i`` with ``o_i + s_i <= H`` and, for each pair that lives together,
``o_i + s_i <= o_j`` or the reverse, chosen by a binary (big-M: the height already reached). Its
relaxation is weak, so it is worth its time for some dozens of buffers only; `search` does the rest.
"""

from __future__ import annotations

from math import ceil, isfinite

from paredown.cost.arena.problem import Problem
from paredown.cost.highs import Row, minimise


def solve(p: Problem, height: int, bound: int, seconds: float) -> tuple[list[int] | None, int]:
    """Offsets of an arena no higher than ``height`` (None: none found) and a proven lower bound."""
    n = len(p.size)
    pairs = [(i, j) for i in range(n) for j in p.beside[i] if i < j]
    top, binaries = n, len(pairs)
    rows = [Row([(top, 1.0), (i, -1.0)], p.size[i]) for i in range(n)]
    for at, (i, j) in enumerate(pairs, start=n + 1):
        # One above the other: o_j - o_i >= s_i where the binary is 1, o_i - o_j >= s_j where 0.
        rows.append(Row([(j, 1.0), (i, -1.0), (at, -height)], p.size[i] - height))
        rows.append(Row([(i, 1.0), (j, -1.0), (at, height)], p.size[j]))
    found = minimise(
        cost=[0.0] * n + [1.0] + [0.0] * binaries,
        whole=[0] * (n + 1) + [1] * binaries,
        lower=[0.0] * n + [float(bound)] + [0.0] * binaries,
        upper=[float(height - s) for s in p.size] + [float(height)] + [1.0] * binaries,
        rows=rows,
        seconds=seconds,
    )
    proven = bound
    if isfinite(found.bound):
        # Every height is a sum of sizes; a little below it is left for the solver's tolerance.
        proven = max(bound, ceil((found.bound - 1e-4 * p.grain) / p.grain) * p.grain)
    if found.x is None:
        return None, proven
    # Exact offsets: in the order of the solution's, each stands on the highest one below it.
    offsets = [0] * n
    above = {(i, j): found.x[at] > 0.5 for at, (i, j) in enumerate(pairs, start=n + 1)}
    for i in sorted(range(n), key=lambda i: (found.x[i], i)):
        below = [j for j in p.beside[i] if (above[j, i] if j < i else not above[i, j])]
        offsets[i] = max((offsets[j] + p.size[j] for j in below), default=0)
    return offsets, proven
