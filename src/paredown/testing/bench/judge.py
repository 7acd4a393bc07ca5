"""Judging a kernel: it is made, it is right, it computes itself; only then is it timed.

Right means, on five sets of random inputs (MultiKernelBench, section 3.4; tolerances of its code
since 2026): results of the reference's number, shapes and dtypes, finite where its are, near where
they are floats and equal where they are not; inputs left alone; earlier results not overwritten.
Beyond the paper: those last two, and time as a paired ratio from one interleaved run.

A kernel that only calls the framework is found by watching torch's dispatcher while it runs: it is
one when the operators of torch it called are of every kind that the reference is made of, and at
least half as many; what a right kernel leaves to torch otherwise is listed. Calls that leave torch
(NumPy, another thread) are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.graph import rules
from paredown.graph.tensors import walk
from paredown.measure.compare import interleave
from paredown.testing.bench.backends import Kernel, KernelBackend
from paredown.testing.bench.task import Task

SETS = 5
HALF = 0.5
"""Share of the reference's calls from which a kernel counts as the framework's."""
FREE = ("view", "copy", "creation", "unknown")
"""Kinds of torch's operators that compute nothing."""

Outcome = Literal["correct", "no kernel", "raised", "wrong", "framework"]


@dataclass
class Verdict:
    """What became of one task on one backend. ``ratio`` is eager's time over the kernel's."""

    task: str
    category: str
    backend: str
    outcome: Outcome
    reason: str = ""
    error: float | None = None
    framework: tuple[str, ...] = ()
    seconds: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    a_a: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def judge(task: Task, backend: KernelBackend, *, seconds: float = 0.0, threads: int = 1) -> Verdict:
    """Make, check and, with ``seconds`` to spend and no fault found, time a kernel."""
    out = Verdict(task.name, task.category, backend.name, "correct")
    try:
        kernel = backend.make(task, threads)
    except Exception as e:  # whatever making it raises is the finding
        return _ended(out, "no kernel", _line(e))
    reference, sets = task.reference(), task.inputs(SETS)
    kept: list[tuple[list[Tensor], list[Tensor]]] = []
    with torch.inference_mode(), _Watch() as watch:
        for inputs in sets:
            watch.on = False
            want = [t.clone() for _, t in walk(reference(*inputs))]
            given = tuple(t.clone() for t in inputs)
            watch.on = True
            try:
                got = [t for _, t in walk(kernel(*given))]
            except Exception as e:  # as above: a crash of the kernel costs this task
                return _ended(out, "raised", _line(e))
            watch.on = False
            why = compare(got, want, task.tolerance, out)
            if why is None and any(
                not torch.equal(a, b) for a, b in zip(given, inputs, strict=True)
            ):
                why = "it overwrites its inputs"
            if why is not None:
                return _ended(out, "wrong", why)
            kept.append((got, want))
        for got, want in kept:
            if compare(got, want, task.tolerance, out) is not None:
                return _ended(out, "wrong", "a later call overwrites an earlier result")
    out.framework = tuple(sorted(watch.seen))
    if not backend.framework and watch.seen:
        needed = _watched(reference, sets[0])
        covered = needed.kinds <= watch.kinds
        if covered and watch.calls >= HALF * SETS * needed.calls:
            return _ended(out, "framework", f"it only calls torch: {', '.join(out.framework)}")
    if seconds:
        _time(out, reference, kernel, sets[0], seconds)
    return out


def compare(
    got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float, out: Verdict | None = None
) -> str | None:
    """Why results are not the reference's, in one line, or None; notes the largest difference."""
    if len(got) != len(want):
        return f"it gives {len(got)} results, not {len(want)}"
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {i} is {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
        if not b.is_floating_point():
            if not torch.equal(a, b):
                return f"result {i} differs in {int((a != b).sum())} of {b.numel()} places"
            continue
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return f"result {i} is not finite where the reference is"
        error = float((a.double() - b.double()).abs().nan_to_num(0.0).max()) if b.numel() else 0.0
        if out is not None:
            out.error = max(out.error or 0.0, error)
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"result {i} is off by up to {error:.3g}"
    return None


def summary(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """A row per backend and category: shares made, correct, and correct and at least as fast."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for v in verdicts:
        for category in (v.category, "all"):
            groups.setdefault((v.backend, category), []).append(v)
    rows: list[dict[str, Any]] = []
    for (backend, category), of in sorted(groups.items()):
        good = [v for v in of if v.outcome == "correct"]
        timed = [v.ratio for v in good if v.ratio is not None]
        rows.append(
            {
                "backend": backend,
                "category": category,
                "tasks": len(of),
                "compile": sum(v.outcome != "no kernel" for v in of) / len(of),
                "pass": len(good) / len(of),
                # SpeedUp_1 at one attempt: of all tasks, those both right and not slower.
                "speedup_1": sum(r >= 1 for r in timed) / len(of) if timed else None,
                "ratio": exp(sum(map(log, timed)) / len(timed)) if timed else None,
            }
        )
    return rows


def _ended(out: Verdict, outcome: Outcome, reason: str) -> Verdict:
    out.outcome, out.reason = outcome, reason
    return out


def _line(e: Exception) -> str:
    return f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}"[:300]


def _time(
    out: Verdict, reference: Kernel, kernel: Kernel, inputs: tuple[Tensor, ...], seconds: float
) -> None:
    with torch.inference_mode():
        found = interleave(
            [("eager", lambda: reference(*inputs)), ("kernel", lambda: kernel(*inputs))],
            seconds=seconds,
        )
    ratio = found["kernel"].ratio
    low, high = ratio.spread or (ratio.known(), ratio.known())
    out.seconds = found["kernel"].latency.known()
    out.ratio, out.spread = 1 / ratio.known(), (1 / high, 1 / low)
    out.a_a = found.a_a.known()


def _watched(reference: Kernel, inputs: tuple[Tensor, ...]) -> _Watch:
    with torch.inference_mode(), _Watch() as watch:
        watch.on = True
        reference(*inputs)
    return watch


class _Watch(TorchDispatchMode):
    """Notes every operator of torch that computes something while ``on``."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.calls = 0
        self.seen: set[str] = set()

    @property
    def kinds(self) -> set[str]:
        """The kinds of what was seen."""
        return {rules.kind(op) for op in self.seen}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the call on."""
        if self.on:
            name = func._schema.name
            if func.namespace == "aten" and rules.kind(name) not in FREE:
                self.seen.add(name)
                self.calls += 1
        return func(*args, **(kwargs or {}))
