"""Times of operators from learned utilisation: analytical bound times what a backend makes of it.

    seconds = max(floor, bound * exp(f(log sizes)))

``bound`` is the roofline of the operator plus what a call costs, ``f`` the curve of its group
(`device.learned`), ``floor`` its arithmetic at the peak alone: utilisation never exceeds 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paredown.cost.describe import Described, pooled
from paredown.device.learned import Curve, Learned

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]


def matern(a: Array, b: Array) -> Array:
    """The Matern 5/2 kernel of variance and length 1 between rows of ``a`` and of ``b``."""
    squares = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T, 0.0)
    d = np.sqrt(5 * squares)
    return (1 + d + d * d / 3) * np.exp(-d)


def log_factor(curve: Curve, values: Sequence[tuple[float, ...]]) -> Array:
    """``log(time / bound)`` at each row of values."""
    scales = np.asarray(curve.scales)
    x = np.clip(np.asarray(values, float), curve.low, curve.high) / scales
    return curve.mean + matern(x, np.asarray(curve.points) / scales) @ np.asarray(curve.weights)


def curve_of(learned: Learned, backend: str, group: str) -> tuple[str, Curve] | None:
    """The curve of a group, else of its whole kind, with its name; None where neither was timed."""
    for name in (f"{backend}/{group}", f"{backend}/{pooled(group)}"):
        if name in learned.curves:
            return name, learned.curves[name]
    return None


def factors(
    learned: Learned, backend: str, described: Sequence[Described | None]
) -> list[tuple[float, float] | None]:
    """``(time / bound, relative error)`` for each description, None where nothing was learned."""
    found: list[tuple[float, float] | None] = [None] * len(described)
    by_curve: dict[str, tuple[Curve, dict[tuple[float, ...], list[int]]]] = {}
    for i, one in enumerate(described):
        known = None if one is None else curve_of(learned, backend, one.group)
        if one is None or known is None or len(one.values) != len(known[1].scales):
            continue
        rows = by_curve.setdefault(known[0], (known[1], {}))[1]
        rows.setdefault(one.values, []).append(i)
    for curve, rows in by_curve.values():
        for factor, places in zip(
            np.exp(log_factor(curve, list(rows))).tolist(), rows.values(), strict=True
        ):
            for i in places:
                found[i] = (factor, curve.error)
    return found
