"""The one timing protocol: subjects side by side in a fresh child, ABBA in bursts, paired ratios.

Each half round runs a burst of every subject in turn, the next half in the opposite order. Runs
after a switch are discarded until the burst is stable. A subject's ratio is the median over half
rounds of its burst median over the baseline's, with a bootstrap interval; the baseline stands
twice, and the ratio of the two is the A/A ratio that tells how far the machine can be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paredown.figure import Figure

BURST_S = 0.04
MIN_RUNS = 3
MIN_HALVES = 6
STABLE = 1.15
QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass
class Timing:
    """One subject's figures: ``latency`` in s, ``ratio`` to the baseline, and each half's
    median.
    """

    name: str
    latency: Figure
    ratio: Figure
    halves: list[float] = field(default_factory=list)


@dataclass
class Comparison:
    """All subjects of one comparison, the baseline first, and the A/A ratio of the same run."""

    timings: list[Timing]
    a_a: Figure
    seconds: float

    def __getitem__(self, name: str) -> Timing:
        return next(t for t in self.timings if t.name == name)


Run = Callable[[], Any]


def interleave(subjects: Sequence[tuple[str, Run]], *, seconds: float, seed: int = 0) -> Comparison:
    """Time ready-to-run subjects against the first of them; call this in a process of its own.

    ``seconds`` is the whole time to spend; at least six half rounds are always run. Latencies are
    medians of stable runs with the (0.2, 0.8) quantiles as spread.
    """
    names = [n for n, _ in subjects]
    runs = [r for _, r in subjects]
    runs.append(runs[0])
    start = time.perf_counter()
    counts = [_burst_length(r) for r in runs]
    halves: list[list[float]] = [[] for _ in runs]
    kept: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    while len(halves[0]) < MIN_HALVES or time.perf_counter() - start < seconds:
        for i in order:
            stable = _burst(runs[i], counts[i])
            halves[i].append(float(np.median(stable)))
            kept[i].extend(stable)
        order.reverse()
    timings = [
        Timing(name, latency(kept[i]), paired_ratio(halves[i], halves[0], seed), halves[i])
        for i, name in enumerate(names)
    ]
    a_a = paired_ratio(halves[-1], halves[0], seed)
    return Comparison(timings, a_a, time.perf_counter() - start)


def _burst_length(run: Run) -> int:
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    return int(np.clip(BURST_S / max(once, 1e-9), MIN_RUNS, 2000))


def _burst(run: Run, count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count + count // 2 + 1):
        t0 = time.perf_counter()
        run()
        times.append(time.perf_counter() - t0)
    return stable_part(times, count)


def stable_part(times: Sequence[float], count: int) -> list[float]:
    """The runs from the first that is within 15 % of the burst's median on; at least ``count``."""
    limit = STABLE * float(np.median(times))
    first = next((i for i, t in enumerate(times) if t <= limit), 0)
    return list(times[min(first, len(times) - count) :])


def latency(samples: Sequence[float]) -> Figure:
    """Median seconds with the 0.2 and 0.8 quantiles, and the quantiles over repeats."""
    a = np.asarray(samples)
    low, high = np.quantile(a, [0.2, 0.8])
    quantiles = {f"p{round(100 * q)}": float(np.quantile(a, q)) for q in QUANTILES}
    return Figure(
        value=float(np.median(a)),
        unit="s",
        how="measured",
        spread=(float(low), float(high)),
        n=len(a),
        quantiles=quantiles,
        over="repeats",
    )


def inverse(figure: Figure, unit: str) -> Figure:
    """A rate from a time, or a throughput ratio from a latency ratio; its spread turned round."""
    low, high = figure.spread or (figure.known(), figure.known())
    return Figure(
        value=1 / figure.known(), unit=unit, how=figure.how, spread=(1 / high, 1 / low), n=figure.n
    )


def paired_ratio(ours: Sequence[float], base: Sequence[float], seed: int = 0) -> Figure:
    """Median of paired ratios with its 95 % bootstrap interval."""
    ratios = np.asarray(ours) / np.asarray(base)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(ratios), size=(1000, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Figure(
        value=float(np.median(ratios)),
        unit="x",
        how="measured",
        spread=(float(low), float(high)),
        n=len(ratios),
    )
