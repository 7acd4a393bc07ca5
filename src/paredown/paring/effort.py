"""What the effort buys: training steps for a recovery, and candidates that still fit into it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paredown.files import write_text
from paredown.measure.child import Jobs, Limits
from paredown.measure.fingerprint import flags
from paredown.paring.request import Request
from paredown.search.space import OFF, Candidate
from paredown.search.trial import Source
from paredown.techniques.recover import lay_out, nhwc

LONG_S = 200.0
"""An effort from which on two recoveries are worth more than one longer one."""
RECOVERY_SHARE = (0.35, 0.2)
"""Share of the effort that one recovery may take, below `LONG_S` and from there on."""
MOST_STEPS = 2000
FEWEST_STEPS = 10
CHECKS = 1.15
"""What a step costs with its share of the judging in between."""
FIRST_TRIAL_S = 6.0
"""Guess for a trial's seconds until the first has been timed."""


@dataclass(frozen=True)
class Grant:
    """Steps that one recovery may train, the seconds one step of the original took in a probe, and
    whether it was faster channels last.
    """

    steps: int
    step_s: float
    channels_last: bool = False

    @property
    def seconds(self) -> float:
        """What a recovery of all steps is expected to take."""
        return self.steps * self.step_s


def grant(request: Request, jobs: Jobs, folder: Path) -> Grant | None:
    """Time a few training steps once per search; None when there is nothing to train on.

    Kept in ``folder``, so that a resumed search grants the same steps.
    """
    if request.workload.training is None:
        return None
    kept = folder / "granted.json"
    if kept.exists():
        return Grant(**json.loads(kept.read_text()))
    step_s, channels_last = jobs.run(
        _probe, request.source, request.threads, limits=Limits.default(request.effort_s)
    )
    share = RECOVERY_SHARE[request.effort_s >= LONG_S]
    steps = int(request.effort_s * share / step_s)
    if steps < FEWEST_STEPS:
        return None
    found = Grant(min(steps, MOST_STEPS), step_s, channels_last)
    write_text(kept, json.dumps(asdict(found)))
    return found


def _probe(source: Source, threads: int) -> tuple[float, bool]:
    """Seconds of one distillation step, and whether channels last is the faster layout for it.

    A batch drawn, both networks forward, one backward, the optimizer's step; the second of two in
    each layout.
    """
    import torch

    from paredown.workload import share

    torch.set_num_threads(threads)
    workload = source.get().own()
    teacher = share(source.get().model)
    assert workload.training is not None
    batches = itertools.cycle(itertools.islice(workload.training.batches(), 4))
    workload.model.train()
    plain = _step_seconds(workload.model, teacher, batches, lambda x: x)
    if not any(isinstance(m, torch.nn.Conv2d) for m in workload.model.modules()):
        return CHECKS * plain, False
    for model in (workload.model, teacher):
        lay_out(model, torch.channels_last)
    last = _step_seconds(workload.model, teacher, batches, nhwc)
    return CHECKS * min(plain, last), last < plain


def _step_seconds(
    student: Any, teacher: Any, batches: Iterator[Any], lay: Callable[[Any], Any]
) -> float:
    import torch

    from paredown.quality import tensors

    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 1e-6)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        inputs = tuple(lay(x) for x in next(batches)[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            with torch.no_grad():
                teacher(*inputs)
            out = [t for _, t in tensors(student(*inputs)) if t.requires_grad]
            torch.stack([t.float().square().mean() for t in out]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
    return max(seconds, 1e-4)


def fast_bf16() -> bool:
    """Whether this processor multiplies bf16 natively, so that training under autocast pays."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and "amx_bf16" in flags()


@dataclass
class Clock:
    """Expected seconds of candidates, from those already run."""

    deadline: float
    recover_s: float
    recovering: str
    """The name of the technique that trains."""
    taken: list[float] = field(default_factory=list)
    trained: set[tuple[tuple[str, str], ...]] = field(default_factory=set)

    def left(self) -> float:
        """Seconds until the search has to end."""
        return self.deadline - time.monotonic()

    def seconds(self, candidate: Candidate) -> float:
        """What a candidate can be expected to take."""
        expected = sum(self.taken) / len(self.taken) if self.taken else FIRST_TRIAL_S
        return expected + (self.recover_s if self.trains(candidate) else 0.0)

    def trains(self, candidate: Candidate) -> bool:
        """Whether a recovery has to be run for it that no earlier trial has run."""
        label = dict(candidate.point).get(self.recovering, OFF)
        return label == "train" and cut_of(candidate) not in self.trained

    def note(self, candidate: Candidate, seconds: float, *, failed: bool = False) -> None:
        """One candidate took so long; one that ``failed`` may not have kept its recovery."""
        if not self.trains(candidate):
            self.taken.append(seconds)
        elif not failed:
            self.trained.add(cut_of(candidate))


CUTS = ("structured-pruning", "low-rank", "recover")


def cut_of(candidate: Candidate) -> tuple[tuple[str, str], ...]:
    """The part of a candidate that a recovery depends on."""
    return tuple((a, label) for a, label in candidate.point if a in CUTS)
