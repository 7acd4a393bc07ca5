"""Time of every operator call of a run in eager, and of the whole run, in a fresh child process.

The run is recorded as capture records it, on real weights, with a clock around each call; so the
times belong to the graph's nodes one to one. A call timed this way includes its dispatch from
Python (about a microsecond), which the whole run's latency, timed without a recorder, does not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from paredown.cost.profile import Measured
from paredown.errors import MeasurementError
from paredown.graph.record import Recorder, op_name
from paredown.graph.train import training_step
from paredown.measure.child import Jobs, Limits, tell
from paredown.measure.compare import Timed, Timing, latency, stable_from
from paredown.runtime.eager import Eager

if TYPE_CHECKING:
    from collections.abc import Callable

    from paredown.figure import Figure
    from paredown.graph.graph import Graph
    from paredown.workload import Workload

SECONDS = 4.0
"""Time spent on each of the two: operators, and the whole run."""

MOST, LEAST = 100, 5


class _Clock(Recorder):
    """A recorder that times each call: its name and its seconds, in order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seconds: list[float] = []
        self.names: list[str] = []

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        out = super()._call(func, args, kwargs)
        self.seconds.append(time.perf_counter() - start)
        self.names.append(op_name(func))
        return out


def self_times(
    make: Callable[[], Workload], graph: Graph, *, threads: int, train: bool = False
) -> tuple[Measured, list[str]]:
    """Self time by node index and the whole run's latency, with notes on what could not be had.

    ``make`` builds the workload in the child. Raises ``MeasurementError`` when the real run calls
    other operators than the captured one (a model that takes another path on real values).
    """
    limits = Limits.default(120.0 + 10 * SECONDS)
    work = list(graph.work_nodes())
    asked, views = [n.op for n in work], views_of(graph)
    job = (make, asked, views, threads, train)
    seconds, whole, parts = Jobs().run(_measure, *job, limits=limits)
    notes: list[str] = []
    if whole is None:
        notes.append("latency is predicted: the clock was on each operator of the training step")
    times = {n.index: s for n, s in zip(work, seconds, strict=True)}
    return Measured(times, whole, parts), notes


def views_of(graph: Graph) -> set[str]:
    """Views and metadata operators, which stand outside; a fake run may have more of them."""
    work = {n.op for n in graph.work_nodes()}
    return ({n.op for n in graph.nodes if n.view} | {"aten::detach"}) - work


def _measure(
    make: Callable[[], Workload], asked: list[str], views: set[str], threads: int, train: bool
) -> tuple[list[float], Figure | None, dict[str, Figure]]:
    torch.set_num_threads(threads)
    workload = make().own()
    workload.model.train(train)
    tell("timing operators")
    runs: list[list[float]] = []
    start = time.perf_counter()
    while len(runs) < LEAST or (time.perf_counter() - start < SECONDS and len(runs) < MOST):
        clock = _run(workload, train)
        calls = [(n, s) for n, s in zip(clock.names, clock.seconds, strict=True) if n not in views]
        _same([n for n, _ in calls], asked, workload.name)
        runs.append([s for _, s in calls])
    # The first run allocates and compiles kernels: it is not one of those that count.
    found = np.median(np.asarray(runs[1:]), axis=0)
    tell("timing the whole run")
    each: list[float] = found.tolist()
    if train:
        return each, None, {}
    whole, parts = _whole(workload, threads)
    return each, whole, parts


def _run(workload: Workload, train: bool) -> _Clock:
    clock = _Clock(workload.model)
    clock.declare(workload)
    if train:
        # As in capture, gradients are made by the step, not added to those of the last.
        workload.model.zero_grad(set_to_none=True)
        training_step(workload, clock)
    else:
        with clock, torch.no_grad():
            workload.once()
    return clock


def _same(found: list[str], asked: list[str], name: str) -> None:
    if found == asked:
        return
    at = next((i for i, (f, a) in enumerate(zip(found, asked, strict=False)) if f != a), None)
    where = (
        f"{len(found)} operators, not {len(asked)}"
        if at is None
        else (f"operator {at} is {found[at]}, not {asked[at]}")
    )
    raise MeasurementError(
        f"{name} runs other operators on real weights than when captured ({where}): "
        "its operators cannot be timed; profile it without --measure"
    )


def _whole(workload: Workload, threads: int) -> tuple[Figure, dict[str, Figure]]:
    """Latency of the whole run, and of a loop's parts with its throughput."""
    run = Timed(Eager().lower(workload, threads=threads), workload)
    times: list[float] = []
    parts: list[dict[str, float]] = []
    run()
    start = time.perf_counter()
    while len(times) < LEAST or (time.perf_counter() - start < SECONDS and len(times) < 2000):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
        parts.append(run.parts())
    first = stable_from(times, max(LEAST, len(times) // 2))
    whole = latency(times[first:])
    if workload.loop is None:
        return whole, {}
    found = {f"latency.{n}": latency([p[n] for p in parts[first:]]) for n in parts[0]}
    made, unit = run.makes()
    one = Timing("", whole, whole, made=made, unit=unit)
    return whole, {**found, "throughput": one.throughput()}
