"""Time and energy of pulses without a network: leading edge, constant fraction, matched filter.

What PulseDL-II (arXiv:2209.00884) and its field compare with. Every estimate returns arrivals up
to a constant, which `calibrated` takes away on pulses of known arrival.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from paredown.apps.pulses.signals import Array, Pulses, Setup, shape, slope

Estimate = Callable[[Setup, NDArray[np.float32]], Array]


def crossing(waves: Array, level: Array) -> Array:
    """Where each wave (pulses, samples) first rises through its level, by the line between two."""
    above = waves >= level[:, None]
    above[:, 0] = False
    at = np.maximum(above.argmax(1), 1)
    rows = np.arange(len(waves))
    low, high = waves[rows, at - 1], waves[rows, at]
    return at - 1 + (level - low) / np.where(high > low, high - low, 1)


def leading_edge(setup: Setup, waves: NDArray[np.float32], level: float = 0.2) -> Array:
    """The time at which a fixed level is crossed: walks with the amplitude."""
    lifted = waves.astype(np.float64) - setup.baseline
    return crossing(lifted, np.full(len(waves), level))


def constant_fraction(
    setup: Setup, waves: NDArray[np.float32], fraction: float = 0.3, delay: int = 4
) -> Array:
    """Where the delayed pulse less a fraction of the prompt one crosses zero."""
    lifted = waves.astype(np.float64) - setup.baseline
    late = np.pad(lifted, ((0, 0), (delay, 0)))[:, : lifted.shape[1]]
    mixed = late - fraction * lifted
    # From its lowest point on, so that noise before the pulse is not taken for a crossing.
    bottom = mixed.argmin(1)
    seen = np.where(np.arange(mixed.shape[1]) < bottom[:, None], -1.0, mixed)
    return crossing(seen, np.zeros(len(waves)))


def matched_filter(setup: Setup, waves: NDArray[np.float32]) -> tuple[Array, Array]:
    """Arrival and amplitude of the least squares fit in the noise's metric, three Newton steps.

    The estimate that reaches the Cramer-Rao bound where noise is small: it knows shape and noise.
    """
    lifted = waves.astype(np.float64) - setup.baseline
    weight = np.linalg.inv(setup.covariance)
    start = np.full(len(waves), setup.start + 0.5)
    size = lifted.max(1)
    for _ in range(3):
        by_size = shape(setup, start)
        by_start = size[:, None] * slope(setup, start)
        rest = lifted - size[:, None] * by_size
        a = np.einsum("ps,st,pt->p", by_start, weight, by_start)
        b = np.einsum("ps,st,pt->p", by_start, weight, by_size)
        d = np.einsum("ps,st,pt->p", by_size, weight, by_size)
        u = np.einsum("ps,st,pt->p", by_start, weight, rest)
        v = np.einsum("ps,st,pt->p", by_size, weight, rest)
        det = a * d - b * b
        start = start + (d * u - b * v) / det
        size = size + (a * v - b * u) / det
    return start, size


def calibrated(
    setup: Setup, estimate: Estimate, known: Pulses, asked: NDArray[np.float32]
) -> Array:
    """Arrivals with the mean offset and slope of the estimate taken away, as seen on ``known``."""
    seen = estimate(setup, known.waves)
    keep = np.isfinite(seen)
    line = np.polyfit(seen[keep], known.start[keep], 1)
    return np.asarray(np.polyval(line, estimate(setup, asked)), np.float64)
