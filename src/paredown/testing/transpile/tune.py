"""Tuning by measurement: a few random schedules compiled together, the fastest right one kept.

Ten trials, as HPCTransCompile's generator spends on each side (arXiv:2506.10401); there is no model
of cost. A candidate is timed only after its result was checked.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.errors import GateError, InputError
from paredown.kernels.loops.compiled import Library
from paredown.kernels.loops.compute import Operator, evaluate
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.lower import for_cpu
from paredown.kernels.loops.schedule import Schedule, Step
from paredown.kernels.loops.stmt import Program
from paredown.testing.bench.task import TOLERANCE
from paredown.testing.transpile import sketches
from paredown.testing.transpile.runnable import RUN

TRIALS = 10
ROUNDS = 3
DRAWS = 20
"""Draws per trial before it is believed that there are no more different schedules."""


@dataclass(frozen=True)
class Trial:
    """A schedule and its median seconds."""

    steps: list[Step]
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The fastest schedule, its program and text, and all trials."""

    schedule: Schedule
    program: Program
    text: str
    seconds: float
    trials: list[Trial]


def candidates(op: Operator, trials: int, seed: int) -> list[tuple[Schedule, Program]]:
    """Different random schedules with their programs; fewer where the operator has fewer."""
    choose = random.Random(seed)
    found: dict[str, tuple[Schedule, Program]] = {}
    for _ in range(DRAWS * trials):
        if len(found) == trials:
            break
        schedule = sketches.for_cpu(op, choose)
        try:
            program = for_cpu(schedule, f"{RUN}_{len(found)}")
        except InputError:
            continue  # its tile or what its stages share is too large: it is drawn again
        found.setdefault(repr(schedule.steps), (schedule, program))
    return list(found.values())


def tune(
    op: Operator,
    inputs: Sequence[Any],
    *,
    threads: int = 1,
    trials: int = TRIALS,
    seed: int = 0,
    seconds: float = 0.01,
) -> Tuned:
    """Measure ``trials`` schedules, each about three times ``seconds``; inputs are NumPy arrays.

    Raises ``LoweringError`` without a compiler, ``GateError`` for a program whose result is wrong.
    """
    if trials < 1 or seconds <= 0:
        raise InputError(f"a tuner needs trials and time, not {trials} of {seconds} s")
    schedules, programs = zip(*candidates(op, trials, seed), strict=True)
    library = Library([print_cpp(p) for p in programs])
    library.threads(threads)
    wanted = evaluate(op, inputs)
    calls = [
        _checked(library, p, s, inputs, wanted) for p, s in zip(programs, schedules, strict=True)
    ]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for n, call in enumerate(calls):
            times[n] += _times(call, seconds)
    medians = [float(np.median(t)) for t in times]
    best = int(np.argmin(medians))
    program = for_cpu(schedules[best], RUN)
    trials_made = [Trial(s.steps, m) for s, m in zip(schedules, medians, strict=True)]
    return Tuned(schedules[best], program, print_cpp(program), medians[best], trials_made)


def _checked(
    library: Library, p: Program, s: Schedule, inputs: Sequence[Any], wanted: list[Any]
) -> Any:
    tensors = s.op.tensors()
    made = [np.full(tensors[q.name].shape, np.nan, np.float32) for q in p.parameters[len(inputs) :]]
    arrays = [*(np.ascontiguousarray(a, np.float32) for a in inputs), *made]
    function = library.function(p.name, len(arrays))

    def call() -> None:
        function(*(a.ctypes.data for a in arrays))

    call()
    for got, want in zip(made, wanted, strict=False):
        if not np.allclose(got, want, TOLERANCE, TOLERANCE):
            raise GateError(f"{s.op.name}: a schedule gives another result: {s.steps}")
    return call


def _times(call: Any, seconds: float) -> list[float]:
    call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found
