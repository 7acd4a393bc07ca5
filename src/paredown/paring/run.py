"""The main job: propose, search, apply, verify, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paredown import quality
from paredown.errors import CandidateFailed
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.measure.child import Jobs, Limits
from paredown.measure.fingerprint import fingerprint
from paredown.paring import candidates
from paredown.paring.effort import Clock, grant
from paredown.paring.prior import Prior, prior
from paredown.paring.request import Request
from paredown.report.progress import Progress
from paredown.result import Fingerprint
from paredown.search import trial
from paredown.search.goal import Goal
from paredown.search.loop import Measured, Outcome, Search
from paredown.search.predict import Predictor
from paredown.search.prove import Proof, prove
from paredown.search.space import OFF, Candidate, Space
from paredown.search.store import Store

PRELOAD = (
    "torch._dynamo",
    "paredown.artefact",
    "paredown.cost",
    "paredown.graph.capture",
    "paredown.recipe",
    "paredown.targets",
)
TRIAL_S = 1.2
"""Seconds of interleaved timing per trial; the final proof takes longer."""
PROOF_S = 6.0
KEPT_FOR_PROOF = 3
PROOF_SHARE = 0.15
"""Share of the effort kept back for the final proof."""
PRECISION_ONLY = frozenset({"bf16", "fold-norm"})
"""Switching the runtime may also switch the precision to what the runtime offers by itself."""


@dataclass
class Run:
    """Everything a finished or interrupted run knows; the report is made of it."""

    request: Request
    graph: Graph
    choices: candidates.Choices
    space: Space
    prior: Prior
    goal: Goal
    search: Search
    fingerprint: Fingerprint
    baseline: dict[str, Figure]
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
    jobs = Jobs(PRELOAD)
    progress.update("capturing the network")
    graph = capture(request.workload)
    machine = fingerprint()
    progress.update("timing a training step")
    granted = grant(request, jobs, request.out)
    found = candidates.choices(request, graph, granted)
    ranking = _sensitivity(request, found, jobs, progress)
    space = candidates.space(request, found, ranking)
    first_guess = prior(
        space, graph, request.device, scale=request.workload.scale, progress=progress.update
    )
    _drop_unpreviewed(space, first_guess, found)
    cache = request.out / "shared"
    cache.mkdir(exist_ok=True)
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
    baseline = _baseline(request, jobs, cache)
    first_guess.baseline = {m: f.value for m, f in baseline.items() if f.value is not None}
    goal = candidates.goal(request, first_guess.baseline)
    every = space.candidates()
    clock = Clock(deadline, granted.seconds if granted else 0.0, "recover")
    search = Search(
        every,
        goal,
        Predictor(space.axes(), first_guess, goal.metrics),
        store,
        _Measure(request, space, jobs, cache, progress, first_guess.baseline, clock),
        first=_plain(every),
        affords=clock.affords,
    )
    search.on_trial = _shown(search, progress)
    out = Run(request, graph, found, space, first_guess, goal, search, machine, baseline)
    _finish_interrupted(request, store, goal, first_guess.baseline)
    search.recall()
    try:
        search.run(more=lambda: clock.left() > 0)
    except KeyboardInterrupt:
        out.interrupted = True
        out.notes.append("interrupted: the best so far was proved and saved")
    store.spend(spent + time.monotonic() - start)
    _prove(out, jobs, progress)
    out.seconds = spent + time.monotonic() - start
    store.spend(out.seconds)
    progress.close()
    return out


def identity(request: Request, space: Space, machine: Fingerprint) -> dict[str, str]:
    """What the measurements of a search belong to; `--resume` refuses another by name."""
    import hashlib

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
    }


def _tensors(workload: Any) -> list[Any]:
    import torch

    values = [*workload.inputs, *workload.kwargs.values()]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _plain(every: list[Candidate]) -> list[Candidate]:
    """What merely switching the runtime gives: no technique but precision and folding."""
    plain = [
        c
        for c in every
        if all(
            label in (OFF, "0") or axis in PRECISION_ONLY or axis == "backend"
            for axis, label in c.point
        )
    ]
    # Inductor compiles for tens of seconds: with little effort the others come first.
    return sorted(plain, key=lambda c: c.backend == "inductor")


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


def _sensitivity(
    request: Request, found: candidates.Choices, jobs: Jobs, progress: Progress
) -> dict[str, list[str]]:
    """Sites of each static numeric technique, the most sensitive first; measured once, in a
    child.
    """
    out: dict[str, list[str]] = {}
    for choice in found.used:
        if choice.name != "static-int8":
            continue
        progress.update(f"how sensitive {len(choice.sites.ok)} sites are to {choice.name}")
        ranked = jobs.run(
            _rank,
            request.source,
            choice.name,
            choice.sites.ok,
            request.threads,
            limits=Limits.default(max(60.0, request.effort_s)),
        )
        out[choice.name] = ranked
    return out


def _rank(source: trial.Source, name: str, sites: tuple[str, ...], threads: int) -> list[str]:
    import torch

    from paredown import registry
    from paredown.technique import Sites
    from paredown.techniques.quantize.sensitivity import sensitivity

    torch.set_num_threads(threads)
    losses = sensitivity(source.get(), registry.make(name), Sites(sites))
    return sorted(losses, key=lambda s: losses[s], reverse=True)


def _baseline(request: Request, jobs: Jobs, cache: Path) -> dict[str, Figure]:
    """The original as its author runs it: eager, own dtype, same threads."""
    figures = jobs.run(_measure_original, request.source, request.threads, request.seed)
    size = sum(
        t.numel() * t.element_size() for t in _unique(request.workload.model.state_dict().values())
    )
    figures["size"] = counted(size, "B")
    return figures


def _unique(tensors: Any) -> list[Any]:
    """One tensor per storage: tied weights are written once."""
    return list({t.untyped_storage().data_ptr() or id(t): t for t in tensors}.values())


def _measure_original(source: trial.Source, threads: int, seed: int) -> dict[str, Figure]:
    import torch

    from paredown import runtime
    from paredown.measure.compare import interleave

    torch.set_num_threads(threads)
    original = source.get()
    eager = runtime.backend("eager").lower(original, threads=threads)
    c = interleave(
        [("baseline", lambda: eager(*original.inputs, **original.kwargs))], seconds=1, seed=seed
    )
    figures = {"latency": c["baseline"].latency}
    graph = capture(original)
    figures["macs"] = counted(graph.macs, "MAC")
    figures["params"] = counted(graph.params, "1")
    if original.evaluate is not None:
        scores = quality.judge(original.evaluate, original.model)
        figures["score"] = quality.score(scores, seed=seed)
    return figures


@dataclass
class _Measure:
    """Runs one candidate in a child; the search's `measure`."""

    request: Request
    space: Space
    jobs: Jobs
    cache: Path
    progress: Progress
    baseline: dict[str, float]
    clock: Clock

    def __call__(self, id: int, candidate: Candidate) -> Measured:
        folder = trial_folder(self.request.out, id)
        folder.mkdir(parents=True, exist_ok=True)
        spec = trial.Spec(
            id,
            self.request.source,
            self.space.recipe(
                candidate,
                target=candidates.target_of(self.request.workload),
                threads=self.request.threads,
                seed=self.request.seed,
            ),
            folder,
            self.cache,
            self.request.device,
            self.request.threads,
            TRIAL_S,
            split=split_for(self.request, decide=False),
            seed=self.request.seed,
        )
        self.progress.update(f"trial {id}: {candidate.text()}")
        start = time.monotonic()
        body = self.jobs.run(
            trial.run,
            spec,
            limits=Limits.default(max(120.0, self.request.effort_s)),
            on_message=lambda m: self.progress.update(f"trial {id}: {candidate.text()}: {m}"),
        )
        self.clock.note(candidate, time.monotonic() - start)
        return measured(trial.load(body), self.baseline)


def measured(report: trial.Report, baseline: dict[str, float]) -> Measured:
    """A trial's report as the search needs it: the latency by its paired ratio, which is
    steadier.
    """
    values = {m: f.value for m, f in report.figures.items() if f.value is not None}
    ratio = report.ratios["latency"].value
    if ratio is not None and "latency" in baseline:
        values["latency"] = ratio * baseline["latency"]
    values["throughput"] = 1.0 / values["latency"]
    body = report.dump()
    del body["detail"]
    return Measured(values, body)


def split_for(request: Request, *, decide: bool) -> np.ndarray | None:
    """Without `verify`, the half of the examples that guides the search or decides the verdict."""
    w = request.workload
    if w.verify is not None or w.evaluate is None:
        return None
    kept = request.out / "shared" / "examples.npy"
    if not kept.exists():
        scores = quality.judge(w.evaluate, w.model)
        np.save(kept, np.asarray(0 if isinstance(scores, float) else np.size(scores)))
    n = int(np.load(kept))
    if n < 2:
        return None
    guide, decides = quality.split_by_hash(n)
    return decides if decide else guide


def trial_folder(out: Path, id: int) -> Path:
    """Where a trial keeps its artefact and result."""
    return out / "trials" / f"{id:04d}"


def _finish_interrupted(
    request: Request, store: Store, goal: Goal, baseline: dict[str, float]
) -> None:
    """Trials that ran when a search was killed: finished ones are told now, the others failed."""
    import json

    for id, _candidate in store.interrupted():
        result = trial_folder(request.out, id) / trial.RESULT
        if result.exists():
            report = trial.load(json.loads(result.read_text()))
            found = measured(report, baseline)
            body = {**found.body, "values": found.values}
            store.tell(id, "done", goal.score(found.values), body)
        else:
            why = {"reason": "the search was killed while it ran", "proposal": True}
            store.tell(id, "skipped", 0.0, why)


def _shown(search: Search, progress: Progress) -> Callable[[Outcome], None]:
    def on_trial(outcome: Outcome) -> None:
        best = search.best()
        if best is not None:
            values = ", ".join(
                f"{m} {best.values[m]:.3g}" for m in search.goal.metrics if m in best.values
            )
            progress.update(best=f"{best.candidate.text()} ({values})")

    return on_trial


def _prove(run: Run, jobs: Jobs, progress: Progress) -> None:
    """Load the best artefacts back from disk and judge them; the first that holds wins.

    The next best is tried only when the best fails on the examples that decide, and the report says
    how many were.
    """
    request = run.request
    run.single = _best_single(run)
    ranked = run.search.ranked()[:KEPT_FOR_PROOF]
    for turn, outcome in enumerate(ranked):
        progress.update(f"proving {outcome.candidate.text()}")
        folders = {"after": trial_folder(request.out, outcome.id) / "artefact"}
        if run.single is not None and run.single.id != outcome.id:
            folders["single"] = trial_folder(request.out, run.single.id) / "artefact"
        spec = Proof(
            request.source,
            folders,
            request.threads,
            PROOF_S,
            split_for(request, decide=True),
            request.seed,
        )
        try:
            proof = jobs.run(prove, spec, on_message=lambda m: progress.update(f"proving: {m}"))
        except CandidateFailed as e:
            run.notes.append(f"{outcome.candidate.text()} failed its proof: {e}")
            continue
        results = judged(run, proof)
        if run.winner is None or all(r.met for r in results):
            run.winner, run.proof = outcome, proof
        if all(r.met for r in results):
            break
        if run.goal.met(outcome.values):
            run.notes.append(
                f"{outcome.candidate.text()} met the budget in the search but not in the proof; "
                f"{turn + 1} candidate(s) were judged on the deciding examples"
            )
        else:
            break


def judged(run: Run, proof: dict[str, Any]) -> list[Any]:
    """The constraints judged on what was proved."""
    return run.request.budget.judge(
        proof["figures"]["after"],
        {**run.baseline, **proof["figures"]["baseline"]},
        proof["ratios"]["after"],
        accept_predicted=run.request.accept_predicted,
    )


def _best_single(run: Run) -> Outcome | None:
    """The fastest of the plain backends whose quality holds: what merely switching runtimes
    gives.
    """
    plain = set(_plain([o.candidate for o in run.search.outcomes]))
    quality_limits = [x for x in run.goal.limits if x.metric in ("drop", "fidelity", "score")]
    fit = [
        o
        for o in run.search.outcomes
        if o.state == "done"
        and o.candidate in plain
        and all(x.metric in o.values and x.miss(o.values[x.metric]) == 0 for x in quality_limits)
    ]
    return min(fit, key=lambda o: o.values["latency"], default=None)
