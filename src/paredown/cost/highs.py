"""Mixed integer programs for HiGHS, through scipy: rows as lists, the bound beside the solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

Entries = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Row:
    """``low <= sum(value * x[column]) <= high``."""

    entries: Entries
    low: float
    high: float = inf


@dataclass(frozen=True)
class Found:
    """The best solution, None where none was found in time, and the proven bound (may be -inf)."""

    x: Any
    bound: float


def minimise(
    cost: Sequence[float],
    whole: Sequence[int],
    lower: Sequence[float],
    upper: Sequence[float],
    rows: Sequence[Row],
    seconds: float = inf,
) -> Found:
    """Minimise ``cost @ x`` over the rows; ``whole`` marks integer columns with 1."""
    import numpy as np
    from scipy import optimize, sparse

    solver: Any = optimize
    entries = [(r, c, v) for r, row in enumerate(rows) for c, v in row.entries]
    r, c, v = (np.array(e) for e in zip(*entries, strict=True))
    matrix = sparse.coo_array((v.astype(float), (r, c)), shape=(len(rows), len(cost))).tocsr()
    low, high = np.array([row.low for row in rows]), np.array([row.high for row in rows])
    found = solver.milp(
        np.array(cost, dtype=float),
        integrality=np.array(whole),
        bounds=solver.Bounds(np.array(lower, dtype=float), np.array(upper, dtype=float)),
        constraints=solver.LinearConstraint(matrix, low, high),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    bound = found.mip_dual_bound
    return Found(found.x, float(bound) if bound is not None and np.isfinite(bound) else -np.inf)
