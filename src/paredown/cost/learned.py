"""Times of operators from learned utilisation: analytical parts times what a backend makes of it.

    seconds = max(floor, sum(weights * parts) * exp(f(log sizes)))

``parts`` are the operator's arithmetic, bytes and call (`cost.price.parts`), weighed for its group,
``f`` the curve of the group (`device.learned`), ``floor`` its arithmetic at the peak alone:
utilisation never exceeds 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paredown.cost.describe import Described, pooled
from paredown.device.learned import Curve, Learned

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]
PARTS = 9
"""Parts of an operator's analytical time (`cost.price.parts`)."""
WEIGHTS_FAR = 6
"""Which of them is the wait for weights in a far level."""
ARITHMETIC = 0
"""Which is arithmetic at the peak."""


@dataclass(frozen=True)
class Known:
    """What a curve says of an operator: seconds, those of its arithmetic, relative error."""

    seconds: float
    arithmetic: float
    error: float


@dataclass(frozen=True)
class Glue:
    """What operators take beside each other (`device.learned.Learned`); neutral where unknown."""

    run: float = 0.0
    arithmetic: float = 1.0
    factor: float = 1.0
    call: float = 0.0
    view: float = 0.0

    @classmethod
    def of(cls, learned: Learned, backend: str) -> Glue:
        """That of a backend."""
        start = f"{backend}/"
        return cls(
            **{k.removeprefix(start): v for k, v in learned.glue_s.items() if k.startswith(start)}
        )

    def beside(self, known: Known) -> float:
        """Seconds of an operator among others, its call left out."""
        rest = known.seconds - known.arithmetic
        return self.arithmetic * known.arithmetic + self.factor * rest


def matern(a: Array, b: Array) -> Array:
    """The Matern 5/2 kernel of variance and length 1 between rows of ``a`` and of ``b``."""
    squares = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T, 0.0)
    d = np.sqrt(5 * squares)
    return (1 + d + d * d / 3) * np.exp(-d)


def log_factor(curve: Curve, values: Sequence[tuple[float, ...]]) -> Array:
    """``log(time / weighed parts)`` at each row of values."""
    scales = np.asarray(curve.scales)
    x = np.clip(np.asarray(values, float), curve.low, curve.high) / scales
    found = curve.mean + matern(x, np.asarray(curve.points) / scales) @ np.asarray(curve.weights)
    return np.clip(found, curve.least, curve.most)


def curve_of(learned: Learned, backend: str, group: str) -> tuple[str, Curve] | None:
    """The curve of a group, else of its whole kind, with its name; None where neither was timed."""
    for name in (f"{backend}/{group}", f"{backend}/{pooled(group)}"):
        if name in learned.curves:
            return name, learned.curves[name]
    return None


def times(
    learned: Learned,
    backend: str,
    described: Sequence[Described | None],
    parts: Sequence[Sequence[float]],
) -> list[Known | None]:
    """What is known of each description with its ``parts`` (`cost.price.parts`).

    None where nothing was learned.
    """
    found: list[Known | None] = [None] * len(described)
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
                own = [factor * w * p for w, p in zip(curve.parts, parts[i], strict=True)]
                found[i] = Known(sum(own), own[ARITHMETIC], curve.error)
    return found
