"""The main job: propose, search, apply, verify, report."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from paredown import registry
from paredown.figure import Figure, with_parts
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.measure.child import Jobs, Limits
from paredown.measure.fingerprint import fingerprint
from paredown.paring import candidates, measuring, predicting
from paredown.paring.effort import Clock, grant
from paredown.paring.predicting import Accepted
from paredown.paring.prior import Prior, prior
from paredown.paring.proving import openers, prove_best
from paredown.paring.request import Request
from paredown.paring.survey import note, survey
from paredown.report.progress import Progress
from paredown.result import Fingerprint
from paredown.search import trial
from paredown.search.goal import Goal
from paredown.search.loop import Outcome, Search
from paredown.search.predict import Predictor
from paredown.search.space import Space
from paredown.search.store import Store
from paredown.technique import Sites
from paredown.techniques.quantize.sensitivity import sensitivity

PRELOAD = (
    "torch._dynamo",
    "paredown.artefact",
    "paredown.cost",
    "paredown.graph.capture",
    "paredown.recipe",
    "paredown.targets",
    "torch.export._trace",
)
PROOF_SHARE = 0.12
"""Share of the effort kept back for the final proof."""


FORK_SAFE = ("PIL", "pandas", "scipy", "skimage", "sklearn", "transformers")
"""Packages that start no threads when imported: what a target uses of them is imported once for all
trials (scikit-learn alone takes 2 s)."""


def needed() -> list[str]:
    """Public modules of `FORK_SAFE` packages that resolving the target has imported here; they
    import their private ones themselves.
    """

    def public(name: str) -> bool:
        top, *parts = name.split(".")
        return top in FORK_SAFE and not any(p.startswith("_") for p in parts)

    return sorted(m for m in sys.modules if public(m))


@dataclass
class Run:
    """Everything a finished or interrupted run knows; the report is made of it."""

    request: Request
    graph: Graph
    choices: candidates.Choices
    space: Space
    goal: Goal
    search: Search
    fingerprint: Fingerprint
    baseline: dict[str, Figure]
    accepted: Accepted
    proof: dict[str, Any] | None = None
    winner: Outcome | None = None
    single: Outcome | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(request: Request, progress: Progress) -> Run:
    """Search within the effort, then prove the best from disk. Ctrl-C stops the search, not the
    proof.
    """
    start = time.monotonic()
    progress.start(f"pare down {request.target}", total=request.effort_s)
    jobs = Jobs((*PRELOAD, *needed()))
    jobs.prepare()
    progress.update("capturing the network")
    graph = capture(request.workload)
    machine = fingerprint()
    progress.update("timing a training step")
    granted = grant(request, jobs, request.out)
    found = candidates.choices(request, graph, granted)
    space = candidates.space(request, found, _Ranking(request, found, jobs, progress))
    first_guess = prior(
        space, graph, request.device, scale=request.workload.scale, progress=progress.update
    )
    _drop_unpreviewed(space, first_guess, found)
    space.refused = first_guess.refused
    cache = request.out / "shared"
    cache.mkdir(parents=True, exist_ok=True)
    store = Store(
        request.out / "search.sqlite",
        space.axes(),
        identity(request, space, machine),
        resume=request.resume,
        seed=request.seed,
    )
    spent = store.spent()
    deadline = start + request.effort_s * (1 - PROOF_SHARE) - spent
    progress.update("measuring the original")
    accepted = predicting.accepted(request, graph)
    baseline = measuring.baseline(request, jobs, accepted)
    first_guess.baseline = with_parts(baseline)
    if request.budget.quality:
        survey(request, space, first_guess, jobs, progress)
    goal = candidates.goal(request, first_guess.baseline)
    every = space.candidates()
    clock = Clock(deadline, granted.seconds if granted else 0.0, "recover")
    search = Search(
        every,
        goal,
        Predictor(space.axes(), first_guess, goal.metrics, first_guess.observe),
        store,
        measuring.Measure(
            request, space, jobs, cache, progress, first_guess.baseline, accepted, clock
        ),
        first=openers(every, request.own_backend, request.effort_s),
        seconds=clock.seconds,
        left=clock.left,
    )
    search.on_trial = _shown(search, progress)
    out = Run(request, graph, found, space, goal, search, machine, baseline, accepted)
    seen = note(first_guess)
    out.notes += [seen] if seen else []
    measuring.finish_interrupted(request, store, goal, first_guess.baseline, accepted)
    search.recall()
    if goal.met({**first_guess.baseline, "drop": 0.0, "fidelity": 1.0}):
        out.notes.append("the original meets every constraint: nothing was tried")
        out.seconds = time.monotonic() - start
        progress.close()
        return out
    try:
        search.run(more=lambda: clock.left() > 0)
    except KeyboardInterrupt:
        out.interrupted = True
        out.notes.append("interrupted: the best so far was proved and saved")
    store.spend(spent + time.monotonic() - start)
    prove_best(out, jobs, progress)
    out.seconds = spent + time.monotonic() - start
    store.spend(out.seconds)
    progress.close()
    return out


def identity(request: Request, space: Space, machine: Fingerprint) -> dict[str, str]:
    """What the measurements of a search belong to; `--resume` refuses another by name."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    ref = request.workload.source
    target = f"{ref.ref} {ref.sha256}" if ref is not None else request.target
    data = repr(request.workload.inputs and [tuple(x.shape) for x in _tensors(request.workload)])
    return {
        "target": digest(target),
        "data": digest(data),
        "space": digest(repr(space.axes())),
        "machine": machine.key,
        "device": "this" if request.here else digest(request.device.model_dump_json()),
    }


def _tensors(workload: Any) -> list[Any]:
    values = [*workload.inputs, *workload.kwargs.values()]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _drop_unpreviewed(space: Space, guess: Prior, found: candidates.Choices) -> None:
    """A variant that cannot even be previewed is not searched; the report says why."""
    kept = []
    for choice in space.choices:
        for label in list(choice.variants):
            why = guess.failed.get((choice.name, label))
            if why is not None:
                del choice.variants[label]
                found.left_out[f"{choice.name} {label}"] = why
        if choice.variants:
            kept.append(choice)
        elif choice.name not in found.left_out:
            found.left_out[choice.name] = next(
                why for (name, _), why in guess.failed.items() if name == choice.name
            )
    space.choices = kept


@dataclass
class _Ranking:
    """Sites of a technique, the most sensitive first: measured in a child when first asked for."""

    request: Request
    found: candidates.Choices
    jobs: Jobs
    progress: Progress
    known: dict[str, list[str]] = field(default_factory=dict)

    def __call__(self, name: str) -> list[str]:
        if name not in self.known:
            sites = next(c.sites.ok for c in self.found.used if c.name == name)
            self.progress.update(f"how sensitive {len(sites)} sites are to {name}")
            limits = Limits.default(max(60.0, self.request.effort_s))
            self.known[name] = self.jobs.run(
                _rank, self.request.source, name, sites, self.request.threads, limits=limits
            )
        return self.known[name]


def _rank(source: trial.Source, name: str, sites: tuple[str, ...], threads: int) -> list[str]:
    torch.set_num_threads(threads)
    losses = sensitivity(source.get(), registry.make(name), Sites(sites))
    return sorted(losses, key=lambda s: losses[s], reverse=True)


def _shown(search: Search, progress: Progress) -> Callable[[Outcome], None]:
    def on_trial(outcome: Outcome) -> None:
        best = search.best()
        if best is not None:
            values = ", ".join(
                f"{m} {best.values[m]:.3g}" for m in search.goal.metrics if m in best.values
            )
            progress.update(best=f"{best.candidate.text()} ({values})")

    return on_trial
