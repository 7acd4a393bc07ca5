"""Detector pulses with noise, sampled and rounded, and the least error that any estimate can have.

The shaper is CR-RC^n: ``A (x / n)^n exp(n - x)`` with ``x = (t - t0) / tau`` and 0 before ``t0``,
so that the peak is ``A`` at ``t0 + n tau``. Noise is white, and one over frequency for a share of
its power. PulseDL-II (Ai et al. 2022, arXiv:2209.00884) feeds such signals from a synthesiser;
its shaping and sampling could not be looked up, so time here is in samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setup:
    """A digitiser and what it sees: times in samples, amplitudes as shares of the range.

    ``snr_db`` is 20 log10(1 / noise deviation), for an amplitude of 1. ``flicker`` is the share of
    the noise's power that goes with 1 / frequency; ``bits`` those of the converter.
    """

    samples: int = 48
    order: int = 2
    tau: float = 4.0
    snr_db: float = 47.4
    flicker: float = 0.2
    bits: int = 12
    start: float = 8.0
    """Arrival lies in ``start`` to ``start`` + 1."""
    amplitudes: tuple[float, float] = (0.6, 1.0)
    baseline: float = 0.04

    def __post_init__(self) -> None:
        if self.samples < self.start + self.order * self.tau + 2:
            raise InputError(f"{self.samples} samples end before the pulse's peak")
        if not 0 <= self.flicker <= 1 or self.tau <= 0 or self.order < 1 or self.bits < 2:
            raise InputError("a setup needs tau above 0, order from 1, 2 bits, flicker in 0 to 1")

    @property
    def noise(self) -> float:
        """Deviation of the noise."""
        return 10 ** (-self.snr_db / 20)

    @property
    def step(self) -> float:
        """One code of the converter, whose range is 0 to 1.25."""
        return 1.25 / 2**self.bits

    @cached_property
    def covariance(self) -> Array:
        """Of the noise over the window (samples, samples), rounding as white noise included."""
        return self.noise**2 * _correlation(self.samples, self.flicker) + np.eye(self.samples) * (
            self.step**2 / 12
        )

    @cached_property
    def factor(self) -> Array:
        """Cholesky factor of the analog noise's covariance."""
        factor = np.linalg.cholesky(self.noise**2 * _correlation(self.samples, self.flicker))
        return np.asarray(factor, np.float64)


def _correlation(samples: int, flicker: float) -> Array:
    """White noise and noise of power 1 / f (none at frequency 0), together of variance 1."""
    size = 8 * samples
    f = np.fft.rfftfreq(size)
    power = np.where(f > 0, 1 / np.maximum(f, f[1]), 0)
    auto = np.fft.irfft(power)[:samples]
    lag = np.abs(np.subtract.outer(np.arange(samples), np.arange(samples)))
    return (1 - flicker) * np.eye(samples) + flicker * auto[lag] / auto[0]


def shape(setup: Setup, start: Array | float) -> Array:
    """Pulses of amplitude 1 that arrive at ``start``: (pulses, samples)."""
    x = (np.arange(setup.samples) - np.atleast_1d(start)[:, None]) / setup.tau
    return _shaped(x, setup.order)


def _shaped(x: Array, n: int) -> Array:
    on = np.maximum(x, 0)
    return (on / n) ** n * np.exp(n - on) * (x > 0)


def slope(setup: Setup, start: Array | float) -> Array:
    """The derivative of `shape` by the arrival: (pulses, samples)."""
    x = (np.arange(setup.samples) - np.atleast_1d(start)[:, None]) / setup.tau
    n, on = setup.order, np.maximum(x, 0)
    rise = (on / n) ** (n - 1) * np.exp(n - on) * (1 - on / n) * (x > 0)
    return -rise / setup.tau


@dataclass(frozen=True)
class Pulses:
    """Rounded waves (pulses, samples) as float32, arrivals in samples, amplitudes."""

    waves: NDArray[np.float32]
    start: Array
    amplitude: Array


def pulses(setup: Setup, count: int, seed: int, *, pile_up: float = 0.0) -> Pulses:
    """Pulses of random arrival and amplitude; ``pile_up``: share with a second pulse behind."""
    rng = np.random.default_rng(seed)
    start = setup.start + rng.random(count)
    low, high = setup.amplitudes
    amplitude = low + (high - low) * rng.random(count)
    waves = amplitude[:, None] * shape(setup, start)
    if pile_up:
        late = start + 2 * setup.tau + rng.random(count) * setup.samples / 2
        size = (rng.random(count) < pile_up) * rng.random(count) * low
        waves += size[:, None] * shape(setup, late)
    noise = rng.standard_normal((count, setup.samples)) @ setup.factor.T
    codes = np.round((waves + noise + setup.baseline) / setup.step)
    rounded = np.clip(codes, 0, 2**setup.bits - 1) * setup.step
    return Pulses(rounded.astype(np.float32), start, amplitude)


def cramer_rao(setup: Setup, start: float, amplitude: float) -> tuple[float, float]:
    """Least deviations of arrival (samples) and amplitude of any unbiased estimate of both.

    The inverse of ``D' C^-1 D`` with D the pulse's derivatives and C the noise's covariance.
    """
    by = np.stack([amplitude * slope(setup, start)[0], shape(setup, start)[0]], 1)
    inverse = np.linalg.inv(by.T @ np.linalg.solve(setup.covariance, by))
    return float(np.sqrt(inverse[0, 0])), float(np.sqrt(inverse[1, 1]))


def least(setup: Setup) -> tuple[float, float]:
    """Root mean square of `cramer_rao` over arrivals and amplitudes: samples, and shares of A."""
    starts = setup.start + (np.arange(8) + 0.5) / 8
    sizes = np.linspace(*setup.amplitudes, 9)
    found = [(*cramer_rao(setup, s, a), a) for s in starts for a in sizes]
    time, energy = zip(*((t * t, (e / a) ** 2) for t, e, a in found), strict=True)
    return float(np.sqrt(np.mean(time))), float(np.sqrt(np.mean(energy)))
