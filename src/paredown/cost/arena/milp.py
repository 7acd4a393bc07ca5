"""Places by an integer program, solved by HiGHS: a second way to the optimum and its bound.

Minimise ``H`` over offsets ``o_i`` with ``o_i + s_i <= H`` and, for each pair that lives together,
``o_i + s_i <= o_j`` or the reverse, chosen by a binary (big-M: the height already reached). Its
relaxation is weak, so it is worth its time for some dozens of buffers only; `search` does the rest.
"""

from __future__ import annotations

from math import ceil

from paredown.cost.arena.problem import Problem


def solve(p: Problem, height: int, bound: int, seconds: float) -> tuple[list[int] | None, int]:
    """Offsets of an arena no higher than ``height`` (None: none found) and a proven lower bound."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    n = len(p.size)
    pairs = [(i, j) for i in range(n) for j in p.beside[i] if i < j]
    top, columns = n, n + 1 + len(pairs)
    rows: list[list[tuple[int, float]]] = [[(top, 1.0), (i, -1.0)] for i in range(n)]
    least = [float(s) for s in p.size]
    for at, (i, j) in enumerate(pairs, start=n + 1):
        # One above the other: o_j - o_i >= s_i where the binary is 1, o_i - o_j >= s_j where 0.
        rows += [[(j, 1.0), (i, -1.0), (at, -height)], [(i, 1.0), (j, -1.0), (at, height)]]
        least += [p.size[i] - height, float(p.size[j])]
    entries = [(r, c, v) for r, row in enumerate(rows) for c, v in row]
    r, c, v = (np.array(x) for x in zip(*entries, strict=True))
    matrix = coo_array((v.astype(float), (r, c)), shape=(len(rows), columns)).tocsr()
    lower = np.zeros(columns)
    lower[top] = bound
    upper = np.ones(columns)
    upper[:n] = [height - s for s in p.size]
    upper[top] = height
    whole = np.zeros(columns)
    whole[top + 1 :] = 1
    aim = np.zeros(columns)
    aim[top] = 1
    found = milp(
        aim,
        integrality=whole,
        bounds=Bounds(lower, upper),
        constraints=LinearConstraint(matrix, np.array(least), np.inf),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    proven = bound
    if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound):
        # Every height is a sum of sizes; a little below it is left for the solver's tolerance.
        proven = max(bound, ceil((found.mip_dual_bound - 1e-4 * p.grain) / p.grain) * p.grain)
    if found.x is None:
        return None, proven
    # Exact offsets: in the order of the solution's, each stands on the highest one below it.
    offsets = [0] * n
    above = {(i, j): found.x[at] > 0.5 for at, (i, j) in enumerate(pairs, start=n + 1)}
    for i in sorted(range(n), key=lambda i: (found.x[i], i)):
        below = [j for j in p.beside[i] if (above[j, i] if j < i else not above[i, j])]
        offsets[i] = max((offsets[j] + p.size[j] for j in below), default=0)
    return offsets, proven
