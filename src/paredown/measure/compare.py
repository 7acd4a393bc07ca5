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
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.figure import QUANTILES, Figure

if TYPE_CHECKING:
    from paredown.runtime.backend import Executable
    from paredown.workload import Workload

BURST_S = 0.04
MIN_RUNS = 3
# What the run before left in the caches is nothing to a run this long: one is a burst.
LONG_S = 0.1
MIN_HALVES = 6
STABLE = 1.15


@dataclass
class Timing:
    """One subject's figures: ``latency`` in s, ``ratio`` to the baseline, and each half's
    median. ``parts`` are those of a loop's parts (``first``, ``per_token``), ``made`` what one run
    of it makes.
    """

    name: str
    latency: Figure
    ratio: Figure
    halves: list[float] = field(default_factory=list)
    parts: dict[str, Timing] = field(default_factory=dict)
    made: int = 1
    unit: str = "runs"

    def figures(self) -> dict[str, Figure]:
        """``latency``, its parts by ``latency.PART``, and ``throughput``."""
        parts = {f"latency.{n}": t.latency for n, t in self.parts.items()}
        return {"latency": self.latency, **parts, "throughput": self.throughput()}

    def ratios(self) -> dict[str, Figure]:
        """The same as ratios to the baseline, where the baseline has them too."""
        parts = {f"latency.{n}": t.ratio for n, t in self.parts.items()}
        return {"latency": self.ratio, **parts, "throughput": inverse(self.ratio, "x")}

    def throughput(self) -> Figure:
        """``runs/s``, ``tokens/s`` of a generation: one run after the other."""
        rate = inverse(self.latency, f"{self.unit}/s")
        low, high = rate.spread or (rate.known(), rate.known())
        more = {"value": rate.known() * self.made, "spread": (low * self.made, high * self.made)}
        return rate.model_copy(update=more)


@dataclass
class Comparison:
    """All subjects of one comparison, the baseline first, and the A/A ratio of the same run."""

    timings: list[Timing]
    a_a: Figure
    seconds: float

    def __getitem__(self, name: str) -> Timing:
        return next(t for t in self.timings if t.name == name)


Run = Callable[[], Any]


@dataclass
class Timed:
    """An executable with the inputs to time it on. A loop's steps are timed apart."""

    executable: Executable
    workload: Workload

    def __call__(self) -> Any:
        """One run."""
        return self.executable(*self.workload.inputs, **self.workload.kwargs)

    def parts(self) -> dict[str, float]:
        """Seconds of the last run's parts: the ``first`` step, and the mean of the later ones.

        A step of a generation makes one token of each sequence; of a stream it is one chunk.
        """
        laps, loop = self.executable.laps, self.workload.loop
        if not laps or loop is None or not loop.parted:
            return {}
        rest = {"per_token": (laps[-1] - laps[0]) / (len(laps) - 1)} if len(laps) > 1 else {}
        return {"first": laps[0], **rest}

    def makes(self) -> tuple[int, str]:
        """What one run makes: so many of what."""
        w = self.workload
        return (1, "runs") if w.loop is None else (w.loop.made(w.inputs, w.kwargs), w.loop.unit)


def interleave(subjects: Sequence[tuple[str, Run]], *, seconds: float, seed: int = 0) -> Comparison:
    """Time ready-to-run subjects against the first of them; call this in a process of its own.

    ``seconds`` is the whole time to spend; at least six half rounds are always run, of one run each
    where it takes a tenth of a second or more. Latencies are medians of stable runs with the
    (0.2, 0.8) quantiles as spread.
    """
    names = [n for n, _ in subjects]
    runs = [r for _, r in subjects]
    runs.append(runs[0])
    start = time.perf_counter()
    counts = [_burst_length(r) for r in runs]
    taken = [_Samples() for _ in runs]
    order = list(range(len(runs)))
    while len(taken[0].halves) < MIN_HALVES or time.perf_counter() - start < seconds:
        for i in order:
            taken[i].add(_burst(runs[i], counts[i]))
        order.reverse()
    timings = [taken[i].timing(name, taken[0], seed, runs[i]) for i, name in enumerate(names)]
    a_a = paired_ratio(taken[-1].halves, taken[0].halves, seed)
    return Comparison(timings, a_a, time.perf_counter() - start)


@dataclass
class _Samples:
    """What was timed of one subject: stable runs, each half's median, and the same of its parts."""

    kept: list[float] = field(default_factory=list)
    halves: list[float] = field(default_factory=list)
    parts: dict[str, _Samples] = field(default_factory=dict)

    def add(self, burst: list[tuple[float, dict[str, float]]]) -> None:
        whole = [seconds for seconds, _ in burst]
        self.halves.append(float(np.median(whole)))
        self.kept.extend(whole)
        for name in burst[0][1]:
            own = [parts[name] for _, parts in burst]
            part = self.parts.setdefault(name, _Samples())
            part.halves.append(float(np.median(own)))
            part.kept.extend(own)

    def timing(self, name: str, base: _Samples, seed: int, run: Run | None = None) -> Timing:
        made, unit = run.makes() if isinstance(run, Timed) else (1, "runs")
        parts = {
            n: p.timing(f"{name}.{n}", base.parts[n], seed)
            for n, p in self.parts.items()
            if n in base.parts
        }
        ratio = paired_ratio(self.halves, base.halves, seed)
        return Timing(name, latency(self.kept), ratio, self.halves, parts, made, unit)


def _burst_length(run: Run) -> int:
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    if once >= LONG_S:
        return 1
    return int(np.clip(BURST_S / max(once, 1e-9), MIN_RUNS, 2000))


def _burst(run: Run, count: int) -> list[tuple[float, dict[str, float]]]:
    """Seconds of stable runs, each with those of its parts; a single run is stable."""
    times: list[float] = []
    parts: list[dict[str, float]] = []
    parted = run.parts if isinstance(run, Timed) else dict[str, float]
    for _ in range(count + count // 2 + 1 if count > 1 else 1):
        t0 = time.perf_counter()
        run()
        times.append(time.perf_counter() - t0)
        parts.append(parted())
    start = stable_from(times, count)
    return list(zip(times[start:], parts[start:], strict=True))


def stable_part(times: Sequence[float], count: int) -> list[float]:
    """The runs from the first that is within 15 % of the burst's median on; at least ``count``."""
    return list(times[stable_from(times, count) :])


def stable_from(times: Sequence[float], count: int) -> int:
    """Where the stable part begins."""
    limit = STABLE * float(np.median(times))
    first = next((i for i, t in enumerate(times) if t <= limit), 0)
    return min(first, len(times) - count)


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
