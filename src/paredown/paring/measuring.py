"""Measuring for a search: the original once, and each candidate in a child of its own."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paredown import artefact, quality
from paredown.errors import ParedownError
from paredown.figure import Figure, counted, with_parts
from paredown.graph.capture import capture
from paredown.measure import memory
from paredown.measure.child import Jobs, Limits
from paredown.paring import candidates
from paredown.paring.effort import Clock
from paredown.paring.predicting import Accepted, budgeted
from paredown.paring.request import Request
from paredown.report.progress import Progress
from paredown.search import trial
from paredown.search.goal import Goal
from paredown.search.judging import Examples
from paredown.search.loop import Measured
from paredown.search.prove import loaded_for_memory, original_for_memory
from paredown.search.space import Candidate, Space
from paredown.search.store import Store
from paredown.workload import stored_bytes

TRIAL_S = 1.2
"""Seconds of interleaved timing per trial; the final proof takes longer."""


def baseline(request: Request, jobs: Jobs, accepted: Accepted) -> dict[str, Figure]:
    """The original as its author runs it: own backend, own dtype, same threads. What may be
    predicted is; of another device nothing is measured but the score.
    """
    figures: dict[str, Figure] = jobs.run(
        _measure_original, request.source, request.threads, request.here, request.seed
    )
    figures["size"] = counted(stored_bytes(request.workload.model), "B")
    if request.here:
        figures["memory"] = memory.measure(
            original_for_memory, request.source, request.threads, backend=request.own_backend
        )
    accepted.fill(figures, {}, accepted.before)
    return figures


def _measure_original(
    source: trial.Source, threads: int, timed: bool, seed: int
) -> dict[str, Figure]:
    import torch

    from paredown import runtime
    from paredown.measure.compare import Timed, interleave

    torch.set_num_threads(threads)
    original = source.get()
    figures: dict[str, Figure] = {}
    if timed:
        own = runtime.backend(runtime.own_backend(original)).lower(original, threads=threads)
        c = interleave([("baseline", Timed(own, original))], seconds=1, seed=seed)
        figures |= c["baseline"].figures()
    graph = capture(original)
    figures["macs"] = counted(graph.macs, "MAC")
    figures["params"] = counted(graph.params, "1")
    return figures | Examples(seed=seed).score(Examples().scores(original, original.model))


@dataclass
class Measure:
    """Runs one candidate in a child; the search's `measure`."""

    request: Request
    space: Space
    jobs: Jobs
    cache: Path
    progress: Progress
    baseline: dict[str, float]
    accepted: Accepted
    clock: Clock

    def __call__(self, id: int, candidate: Candidate) -> Measured:
        """Run trial ``id``; raises `ParedownError` when the candidate fails."""
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
            examples_for(self.request, deciding=False),
            timed=self.request.here,
            seed=self.request.seed,
        )
        self.progress.update(f"trial {id}: {candidate.text()}")
        start = time.monotonic()
        try:
            body = self.jobs.run(
                trial.run,
                spec,
                limits=Limits.default(max(120.0, self.request.effort_s)),
                on_message=lambda m: self.progress.update(f"trial {id}: {candidate.text()}: {m}"),
            )
            report = trial.load(body)
            if self.request.here and "memory" in budgeted(self.request.budget):
                report.figures["memory"] = memory_of(self.request, folder / "artefact")
        except ParedownError:
            self.clock.note(candidate, time.monotonic() - start, failed=True)
            raise
        self.clock.note(candidate, time.monotonic() - start)
        return measured(report, self.baseline, self.accepted)


def memory_of(request: Request, folder: Path) -> Figure:
    """Peak memory of an artefact; unavailable with the reason where it cannot be counted."""
    backend = artefact.check(folder).backend
    return memory.measure(
        loaded_for_memory, folder, request.threads, request.source, backend=backend
    )


def measured(report: trial.Report, baseline: dict[str, float], accepted: Accepted) -> Measured:
    """A trial's report as the search needs it: with the predictions that may decide, and the
    latency by its paired ratio, which is steadier.
    """
    accepted.fill(report.figures, report.ratios, report.predicted)
    values = with_parts(report.figures)
    for metric, ratio in report.ratios.items():
        if metric.partition(".")[0] in ("latency", "throughput") and metric in baseline:
            values[metric] = ratio.known() * baseline[metric]
    body = report.dump()
    del body["detail"]
    return Measured(values, body)


def examples_for(request: Request, *, deciding: bool) -> Examples:
    """The examples that guide the search or decide the verdict: without `verify`, a part of
    `evaluate`'s each.
    """
    whole = Examples(deciding=deciding, seed=request.seed)
    w = request.workload
    if w.verify is not None or w.evaluate is None:
        return whole
    kept = request.out / "shared" / "examples.npy"
    if not kept.exists():
        scores = quality.judge(w.evaluate, w.model)
        np.save(kept, np.asarray(0 if isinstance(scores, float) else np.size(scores)))
    n = int(np.load(kept))
    if n < 2:
        return whole
    guide, decides = quality.split_by_hash(n)
    return replace(whole, split=decides if deciding else guide)


def trial_folder(out: Path, id: int) -> Path:
    """Where a trial keeps its artefact and result."""
    return out / "trials" / f"{id:04d}"


def finish_interrupted(
    request: Request, store: Store, goal: Goal, baseline: dict[str, float], accepted: Accepted
) -> None:
    """Trials that ran when a search was killed: finished ones are told now, the others failed."""
    for id, _candidate in store.interrupted():
        result = trial_folder(request.out, id) / trial.RESULT
        if result.exists():
            report = trial.load(json.loads(result.read_text()))
            found = measured(report, baseline, accepted)
            body = {**found.body, "values": found.values}
            store.tell(id, "done", goal.score(found.values), body)
        else:
            why = {"reason": "the search was killed while it ran", "proposal": True}
            store.tell(id, "skipped", 0.0, why)
