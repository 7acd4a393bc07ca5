"""The shared fine-tuning loop: AdamW under a cosine, distilling from the original network.

What it is trained towards stands in `distance` (Hinton et al. 2015). The best state seen is what
remains; a run that diverges goes back to it and says so. Every step draws its randomness from
(seed, step), so a run cut off and resumed equals one that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.quality import judge
from paredown.runtime.zeros import kept_zeros
from paredown.techniques.checkpoint import Checkpoint
from paredown.techniques.companion import Companion
from paredown.techniques.distance import Taps, distillation
from paredown.workload import Evaluate, TrainingData

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

BLOW_UP = 20.0
"""A loss this many times the first one counts as divergence."""


NORM_BATCHES = 16
"""Batches for fresh batch-norm statistics, where nobody says otherwise."""


@dataclass(frozen=True)
class Plan:
    """How to train: ``steps`` of AdamW at ``lr`` under a cosine after a short warm-up.

    ``task`` weighs the workload's own loss against distillation, ``features`` adds the normalised
    squared error of equal-shaped block outputs; ``patience`` checks without a better score end it.
    ``channels_last`` lays images and filters out as NHWC meanwhile: on CPUs often a third faster.
    """

    steps: int
    lr: float = 1e-3
    temperature: float = 2.0
    task: float = 0.5
    features: float = 0.0
    decay: float = 0.01
    bf16: bool = False
    channels_last: bool = False
    checks: int = 4
    patience: int = 4
    clip: float = 1.0
    seed: int = 0
    keep_best: bool = True
    """False: the state of the last check remains (what is scored may change while it trains)."""

    def __post_init__(self) -> None:
        """Raises ``InputError`` for what cannot be trained with."""
        if self.steps < 0:
            raise InputError(f"steps must be at least 0, got {self.steps}")
        if not self.lr > 0 or not self.temperature > 0:
            raise InputError("lr and temperature must be positive")
        if not 0 <= self.task <= 1 or self.features < 0:
            raise InputError("task must lie in [0, 1] and features must be at least 0")


@dataclass
class Outcome:
    """What training did: steps granted, the step and score kept, and how it ended."""

    steps: int
    best_step: int
    first_score: float
    best_score: float
    ended: str
    losses: list[float] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """What a recipe records of it."""
        kept = asdict(self)
        del kept["losses"]
        return kept


@dataclass(frozen=True)
class Progress:
    """One report: ``left_s`` is the time left at the present pace."""

    step: int
    steps: int
    loss: float
    best_score: float
    left_s: float


@dataclass(frozen=True)
class Session:
    """What a caller wants of training inside its scope: reports, checkpoints, a deadline.

    ``folder`` receives a checkpoint at every check and is resumed from; ``deadline`` is a
    ``time.monotonic`` value after which training ends with the steps granted so far.
    """

    progress: Callable[[Progress], None] | None = None
    folder: Path | None = None
    deadline: float | None = None


_NO_SESSION = Session()
_session: ContextVar[Session] = ContextVar("recovery_session", default=_NO_SESSION)


@contextlib.contextmanager
def session(
    progress: Callable[[Progress], None] | None = None,
    folder: Path | None = None,
    deadline: float | None = None,
) -> Generator[None]:
    """Give every training inside the scope reports, checkpoints and a deadline."""
    token = _session.set(Session(progress, folder, deadline))
    try:
        yield
    finally:
        _session.reset(token)


def train(
    student: nn.Module,
    teacher: nn.Module | None,
    data: TrainingData,
    plan: Plan,
    *,
    evaluate: Evaluate | None = None,
    companion: Companion | None = None,
) -> Outcome:
    """Train ``student`` in place and leave it in its best state.

    Without a ``teacher`` the data's own loss is used; raises ``InputError`` when there is neither,
    or when the data yields no batch. The score is ``evaluate``'s mean, else minus the loss on the
    first batches in eval mode. A ``companion`` adds losses and trains along.
    """
    if teacher is None and data.loss is None:
        raise InputError("recovery needs the original model or a `loss` in the training data")
    with torch.random.fork_rng(devices=[]):
        try:
            return _Training(student, teacher, data, plan, evaluate, companion).run()
        finally:
            lay_out(student, torch.contiguous_format)


class _Training:
    """One training run; see `train`."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        data: TrainingData,
        plan: Plan,
        evaluate: Evaluate | None,
        companion: Companion | None,
    ) -> None:
        self.student, self.teacher, self.data, self.plan = student, teacher, data, plan
        self.evaluate, self.companion = evaluate, companion
        # What a checkpoint holds as it is now.
        self.whole = student if companion is None else nn.ModuleList([student, companion])
        self.session = _session.get()
        if plan.channels_last:
            for model in (student, teacher):
                if model is not None:
                    lay_out(model, torch.channels_last)
        self.taps = Taps(student, teacher) if teacher is not None and plan.features else None
        self.weights = [
            p for p in self.whole.parameters() if p.requires_grad and p.is_floating_point()
        ]
        self.zeros = kept_zeros(student)
        self.optimizer = torch.optim.AdamW(self.weights, plan.lr, weight_decay=plan.decay)
        self.held = list(itertools.islice(self._draw(-1), 2))
        if not self.held:
            raise InputError("recovery got no batch: `training.batches()` yields nothing")

    def run(self) -> Outcome:
        """The loop: step, check now and then, keep the best."""
        if self.teacher is not None:
            self.teacher.eval()
        plan = self.plan
        store = Checkpoint(
            self.session.folder, {"plan": asdict(plan), "what": signature(self.whole)}
        )
        out = Outcome(0, 0, 0.0, 0.0, "all steps done")
        best = snapshot(self.student)
        stale = 0
        resumed = store.load(self.whole, self.optimizer)
        if resumed is not None:
            best, stale = resumed.best, resumed.extra.pop("stale")
            out = Outcome(**resumed.extra)
        else:
            out.first_score = out.best_score = self.score()
            if not math.isfinite(out.first_score):
                raise InputError(
                    f"recovery starts from a score of {out.first_score}: the outputs of the model "
                    "or of its original are not finite on the training data"
                )
        every = max(1, math.ceil(plan.steps / max(1, plan.checks)))
        started, first = time.monotonic(), out.steps
        batches = self._batches(out.steps)
        while out.steps < plan.steps:
            if self.session.deadline is not None and time.monotonic() > self.session.deadline:
                out.ended = "out of time"
                break
            loss = self._step(out.steps, next(batches))
            first_loss = out.losses[0] if out.losses else loss
            if not math.isfinite(loss) or loss > BLOW_UP * max(first_loss, 1e-6):
                out.ended = f"diverged at step {out.steps + 1}: back to the best state"
                break
            out.losses.append(loss)
            out.steps += 1
            if out.steps % every == 0 or out.steps == plan.steps:
                score = self.score()
                stale += 1
                # A tie goes to the state trained longer: a small validation set saturates.
                if score >= out.best_score or not plan.keep_best:
                    best, stale = snapshot(self.student), 0
                    out.best_score, out.best_step = score, out.steps
                store.save(self.whole, self.optimizer, best, {**asdict(out), "stale": stale})
                if stale >= plan.patience:
                    out.ended = f"no better score in {stale} checks"
                    break
            self._report(out, started, first)
        restore(self.student, best)
        self.student.eval()
        return out

    def _step(self, step: int, batch: tuple[tuple[Any, ...], Any]) -> float:
        self.student.train()
        rate = self.plan.lr * schedule(step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(*batch, self.companion)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for weight, free in self.zeros:
            if weight.grad is not None:
                weight.grad *= free  # AdamW moves nothing by a gradient that was always zero
        nn.utils.clip_grad_norm_(self.weights, self.plan.clip)
        value = float(loss.detach())
        if math.isfinite(value):
            self.optimizer.step()
            if self.companion is not None:
                self.companion.stepped(rate)
        return value

    def _loss(
        self, inputs: tuple[Any, ...], target: Any, companion: Companion | None = None
    ) -> Tensor:
        plan = self.plan
        if plan.channels_last:
            inputs = tuple(nhwc(x) for x in inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            out = self.student(*inputs)
            terms: list[Tensor] = []
            share = plan.task if self.data.loss is not None else 0.0
            if self.teacher is None:
                share = 1.0
            if self.teacher is not None and share < 1:
                with torch.no_grad():
                    wanted = self.teacher(*inputs)
                kl = distillation(out, wanted, target, plan.temperature)
                terms.append((1 - share) * kl)
            if self.data.loss is not None and share > 0:
                terms.append(share * self.data.loss(out, target))
            if self.taps is not None:
                terms.append(plan.features * self.taps.difference())
            if companion is not None:
                terms.append(companion.loss(self.student, inputs, target, out))
        return torch.stack([t.float() for t in terms]).sum()

    def score(self) -> float:
        """How good the student is now: the judge's mean, else minus the held batches' loss."""
        if self.companion is not None:
            self.companion.judging(self.student)
        if self.evaluate is not None:
            value = judge(self.evaluate, self.student)
            return float(value) if isinstance(value, (int, float)) else float(value.mean())
        self.student.eval()
        with torch.no_grad():
            return -sum(float(self._loss(*b)) for b in self.held) / len(self.held)

    def _draw(self, epoch: int) -> Iterable[tuple[tuple[Any, ...], Any]]:
        torch.manual_seed(_seed(self.plan.seed, epoch, 1))
        return self.data.batches()

    def _batches(self, skip: int) -> Generator[tuple[tuple[Any, ...], Any]]:
        """Batches of epoch after epoch from step ``skip`` on, each drawn under its step's seed."""
        step = 0
        for epoch in itertools.count():
            source = iter(self._draw(epoch))
            before = step
            while True:
                torch.manual_seed(_seed(self.plan.seed, step, 2))
                batch = next(source, None)
                if batch is None:
                    break
                if step >= skip:
                    torch.manual_seed(_seed(self.plan.seed, step, 3))
                    yield batch
                step += 1
            if step == before:
                raise InputError("recovery got no batch: `training.batches()` yields nothing")

    def _report(self, out: Outcome, started: float, first: int) -> None:
        if self.session.progress is None:
            return
        pace = (time.monotonic() - started) / max(1, out.steps - first)
        left = pace * (self.plan.steps - out.steps)
        self.session.progress(
            Progress(out.steps, self.plan.steps, out.losses[-1], out.best_score, left)
        )


def lay_out(model: Any, layout: torch.memory_format) -> None:
    """Lay the 4-d weights of a module out anew, in place; their values stay."""
    model.to(memory_format=layout)  # torch's stubs lack this overload, hence the Any


def nhwc(x: Any) -> Any:
    """An image batch ``(n, c, h, w)`` laid out channels last; anything else as it is."""
    if isinstance(x, Tensor) and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def schedule(step: int, steps: int) -> float:
    """Warm-up over the first twentieth, then half a cosine down to a hundredth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def recalibrate(model: nn.Module, calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]]) -> int:
    """Fresh running statistics for every batch normalisation, in place; returns batches used."""
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    norms = [m for m in norms if m.track_running_stats]
    if not norms:
        return 0
    momenta = [m.momentum for m in norms]
    model.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain average over all batches
        m.train()
    used = 0
    with torch.no_grad():
        for args, kwargs in calls:
            model(*args, **kwargs)
            used += 1
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.eval()
    return used


def fresh_norms(model: nn.Module, data: TrainingData, batches: int = NORM_BATCHES) -> int:
    """`recalibrate` on the first ``batches`` batches of training data; returns those used."""
    some = itertools.islice(data.batches(), batches)
    return recalibrate(model, ((inputs, {}) for inputs, _ in some))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer by name, each tied tensor once."""
    pairs = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: t.detach().clone() for name, t in pairs}


def restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Write a snapshot back in place."""
    with torch.no_grad():
        for name, t in itertools.chain(model.named_parameters(), model.named_buffers()):
            t.copy_(state[name])


def signature(model: nn.Module) -> dict[str, list[int]]:
    """Shapes of every tensor: what a checkpoint must fit."""
    return {k: list(t.shape) for k, t in snapshot(model).items()}


def _seed(seed: int, step: int, stream: int) -> int:
    return (seed * 1_000_003 + (step + 1) * 97 + stream) % (2**63)
