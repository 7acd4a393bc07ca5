"""Times over inputs: for networks whose work depends on the input (CONTRACTS, Figures).

Every half round runs all inputs in their order on every subject in turn, the next half in the
opposite order of subjects; before each half a subject forgets what it kept of earlier ones. An
input's time is its median over halves; a subject's latency is the mean over inputs with their
quantiles (its spread: that of the halves' means, 0.2 to 0.8), its ratio the median over halves of
its mean over the baseline's. The first half is thrown away: it warms up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError
from paredown.figure import over_inputs
from paredown.measure.compare import (
    MIN_HALVES,
    Comparison,
    Timed,
    Timing,
    interleave,
    paired_ratio,
)

Call = tuple[tuple[Any, ...], dict[str, Any]]


def compared(subjects: Sequence[tuple[str, Timed]], *, seconds: float, seed: int = 0) -> Comparison:
    """`interleave`, or `passes` over the first workload's population where a subject's work depends
    on the input.
    """
    if not any(run.executable.varies for _, run in subjects):
        return interleave(subjects, seconds=seconds, seed=seed)
    calls = subjects[0][1].workload.population_inputs()
    return passes(subjects, calls, seconds=seconds, seed=seed)


def passes(
    subjects: Sequence[tuple[str, Timed]],
    calls: Sequence[Call],
    *,
    seconds: float,
    seed: int = 0,
) -> Comparison:
    """Time subjects on the same inputs against the first; call this in a process of its own.

    At least six half rounds are run, then as many as ``seconds`` allow. Raises ``InputError``
    without inputs.
    """
    if not calls:
        raise InputError("no inputs to time on: give the workload a `population` or `calibration`")
    names = [name for name, _ in subjects]
    runs = [run for _, run in subjects]
    runs.append(runs[0])
    for run in runs:
        _pass(run, calls)
    start = time.perf_counter()
    halves: list[list[NDArray[np.float64]]] = [[] for _ in runs]
    order = list(range(len(runs)))
    while len(halves[0]) < MIN_HALVES or time.perf_counter() - start < seconds:
        for i in order:
            halves[i].append(_pass(runs[i], calls))
        order.reverse()
    means = [[float(half.mean()) for half in taken] for taken in halves]
    timings: list[Timing] = []
    for i, name in enumerate(names):
        each = np.median(np.stack(halves[i]), axis=0)
        latency = over_inputs(each.tolist(), "s", "measured")
        # Means of medians lie below means: the halves tell how far the figure moves, not where.
        low, high = latency.known() * np.quantile(means[i], [0.2, 0.8]) / np.median(means[i])
        made, unit = runs[i].makes()
        timings.append(
            Timing(
                name,
                latency.model_copy(update={"spread": (float(low), float(high))}),
                paired_ratio(means[i], means[0], seed),
                means[i],
                made=made,
                unit=unit,
            )
        )
    a_a = paired_ratio(means[-1], means[0], seed)
    return Comparison(timings, a_a, time.perf_counter() - start)


def _pass(run: Timed, calls: Sequence[Call]) -> NDArray[np.float64]:
    """Seconds of every input, in order, from an empty memory."""
    executable = run.executable
    executable.forget()
    taken = np.empty(len(calls))
    for i, (args, kwargs) in enumerate(calls):
        start = time.perf_counter()
        executable(*args, **kwargs)
        taken[i] = time.perf_counter() - start
    return taken
