"""Pairs of texts that compute the same, CUDA-like and C++, checked, timed and kept as JSON lines.

Made as HPCTransCompile makes its data (arXiv:2506.10401): one operator, a schedule for each side,
the unscheduled loops beside them. Deviations: the CUDA-like side is scheduled by rule, since no
device measures here, and it is emulated; the C++ side is the best of a few random schedules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from paredown.errors import ArtefactError, GateError
from paredown.files import write_text
from paredown.graph.tensors import walk
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.cuda import print_cuda
from paredown.kernels.loops.lower import for_cpu, for_threads
from paredown.kernels.loops.parser import parse
from paredown.kernels.loops.schedule import Schedule, Step
from paredown.testing.bench.judge import compare, judge
from paredown.testing.transpile import sketches
from paredown.testing.transpile.runnable import RUN, Buffers, buffers
from paredown.testing.transpile.subjects import Subject
from paredown.testing.transpile.tune import TRIALS, tune

SCHEMA = 1


@dataclass(frozen=True)
class Side:
    """A text, its buffers in order (inputs, results, workspaces) and the schedule it is from."""

    text: str
    buffers: Buffers
    steps: list[Step]

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Pair:
    """Both sides of one operator. ``seconds`` is the C++ side's median on ``threads`` threads."""

    name: str
    category: str
    source: dict[str, Any]
    cuda: Side
    cpp: Side
    loops: str
    seconds: float
    threads: int
    trials: int
    machine: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    """Largest difference to the reference, side by side."""

    def to_json(self) -> dict[str, Any]:
        """Plain data with the texts' hashes and one of everything."""
        row: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        for name, side in (("cuda", self.cuda), ("cpp", self.cpp)):
            row[name] = {**asdict(side), "sha256": side.sha256}
        row = json.loads(json.dumps(row))
        return {**row, "sha256": _digest(row)}

    @staticmethod
    def from_json(row: dict[str, Any]) -> Pair:
        """A pair again; raises ``ArtefactError`` for another schema or a wrong hash."""
        given = dict(row)
        if given.get("schema") != SCHEMA:
            raise ArtefactError(f"a pair of schema {given.get('schema')!r}, not {SCHEMA}")
        if given.pop("sha256", None) != _digest(given):
            raise ArtefactError(f"pair {given.get('name')!r} is not what was written: wrong hash")
        del given["schema"]
        for side in ("cuda", "cpp"):
            s = given[side]
            made_of: Buffers = [(str(n), tuple(shape)) for n, shape in s["buffers"]]
            given[side] = Side(s["text"], made_of, [tuple(x) for x in s["steps"]])
        return Pair(**given)


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def make_pair(
    subject: Subject,
    *,
    trials: int = TRIALS,
    threads: int = 1,
    seed: int = 0,
    seconds: float = 0.01,
    machine: str = "",
) -> Pair:
    """Schedule, tune and check both sides.

    Raises ``GateError`` where a side differs from the reference, ``LoweringError`` without a
    compiler.
    """
    op, task = subject.written.op, subject.task
    threaded = sketches.for_threads(op)
    cuda = _side(print_cuda(for_threads(threaded, RUN)), threaded)
    errors = {"cuda": _emulated_error(subject, cuda)}
    inputs = [t.numpy() for t in task.inputs(1)[0]] + subject.written.weights
    best = tune(op, inputs, threads=threads, trials=trials, seed=seed, seconds=seconds)
    cpp = _side(best.text, best.schedule)
    found = judge(task, subject.backend("cpp", cpp.text, cpp.buffers, threads), threads=threads)
    if found.outcome != "correct":
        raise GateError(f"{task.name}: its C++ side is {found.outcome}: {found.reason}")
    errors["cpp"] = float(found.error or 0.0)
    loops = print_cpp(for_cpu(Schedule(op), RUN))
    return Pair(
        task.name, task.category, subject.source, cuda, cpp, loops, best.seconds, threads,
        len(best.trials), machine, errors,
    )  # fmt: skip


def _side(text: str, schedule: Schedule) -> Side:
    program = for_threads if "__global__" in text else for_cpu
    return Side(text, buffers(program(schedule, RUN), schedule.op), schedule.steps)


def _emulated_error(subject: Subject, cuda: Side) -> float:
    """The text, read back and emulated on one set of inputs, against the reference."""
    from paredown.testing.bench.judge import Verdict

    task = subject.task
    inputs = task.inputs(1)[0]
    kernel = subject.emulated(parse(cuda.text), cuda.buffers).make(task, 1)
    note = Verdict(task.name, task.category, "emulated", "correct")
    with torch.inference_mode():
        want = [t for _, t in walk(task.reference()(*inputs))]
        got = [t for _, t in walk(kernel(*inputs))]
    why = compare(got, want, task.tolerance, note)
    if why is not None:
        raise GateError(f"{task.name}: its CUDA-like side is wrong: {why}")
    return float(note.error or 0.0)


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> Path:
    """One pair a line, atomically; raises ``InputError`` where it cannot be written."""
    lines = [json.dumps(p.to_json(), sort_keys=True) for p in pairs]
    return write_text(path, "\n".join([*lines, ""]))


def read_pairs(path: Path | str) -> list[Pair]:
    """All pairs of a file, every hash checked; raises ``ArtefactError`` with the line."""
    path = Path(path)
    if not path.is_file():
        raise ArtefactError(f"no file of pairs at {path}")
    found: list[Pair] = []
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Pair.from_json(json.loads(line)))
        except ArtefactError as e:
            raise ArtefactError(f"{path}, line {n}: {e}") from None
        except (ValueError, TypeError, KeyError) as e:
            raise ArtefactError(f"{path}, line {n}: no pair: {e}") from None
    return found
