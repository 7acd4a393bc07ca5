"""Proving the best: loaded back from disk, judged on held-out examples, timed side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown import runtime
from paredown.errors import CandidateFailed
from paredown.measure.child import Jobs
from paredown.paring.effort import fast_bf16
from paredown.paring.keeping import FINALISTS, holds_artefact
from paredown.paring.measuring import examples_for, memory_of, trial_folder
from paredown.paring.predicting import budgeted
from paredown.report.progress import Progress
from paredown.result import ConstraintResult
from paredown.search.loop import Outcome
from paredown.search.prove import Proof, prove
from paredown.search.space import OFF, Candidate

if TYPE_CHECKING:
    from paredown.paring.run import Run

PROOF_S = 6.0
ORDER = ("openvino", "native", "onnxruntime", "eager", "inductor")
THOROUGH_S = 600.0
"""From this effort on the plain backends are measured in fp32 too where bf16 is fast."""
PRECISION_ONLY = frozenset({"bf16", "fold-norm"})
"""Switching the runtime may also switch the precision to what the runtime offers by itself."""


def prove_best(run: Run, jobs: Jobs, progress: Progress) -> None:
    """Load the best artefacts back from disk and judge them; the first that holds wins.

    The next best is tried only when the best fails on the examples that decide, and the report says
    how many were.
    """
    request = run.request
    run.single = best_single(run)
    ranked = [o for o in run.search.ranked() if holds_artefact(request.out, o)][:FINALISTS]
    kept: dict[str, Path] = {}
    for turn, outcome in enumerate(ranked):
        progress.update(f"proving {outcome.candidate.text()}")
        folders = {"after": trial_folder(request.out, outcome.id) / "artefact"}
        if run.single is not None and run.single.id != outcome.id:
            folders["single"] = trial_folder(request.out, run.single.id) / "artefact"
        spec = Proof(
            request.source,
            folders,
            request.device,
            request.threads,
            PROOF_S,
            examples_for(request, deciding=True),
            timed=request.here,
            seed=request.seed,
        )
        try:
            proof = jobs.run(prove, spec, on_message=lambda m: progress.update(f"proving: {m}"))
        except CandidateFailed as e:
            run.notes.append(f"{outcome.candidate.text()} failed its proof: {e}")
            continue
        if "memory" in budgeted(request.budget):
            _add_memory(run, proof, folders)
        for name, predicted in proof["predicted"].items():
            ratios = proof["ratios"].setdefault(name, {})
            run.accepted.fill(proof["figures"][name], ratios, predicted)
        results = judged(run, proof)
        if run.winner is None or all(r.met for r in results):
            run.winner, run.proof, kept = outcome, proof, folders
        if all(r.met for r in results):
            break
        if run.goal.met(outcome.values):
            run.notes.append(
                f"{outcome.candidate.text()} met the budget in the search but not in the proof; "
                f"{turn + 1} candidate(s) were judged on the deciding examples"
            )
        else:
            break
    if run.proof is not None and "memory" not in budgeted(request.budget):
        progress.update("counting memory")
        _add_memory(run, run.proof, kept)


def _add_memory(run: Run, proof: dict[str, Any], folders: dict[str, Path]) -> None:
    """Memory is measured in a child of its own; that of another device has been predicted."""
    if run.request.here:
        for name, folder in folders.items():
            proof["figures"][name]["memory"] = memory_of(run.request, folder)


def judged(run: Run, proof: dict[str, Any]) -> list[ConstraintResult]:
    """The constraints judged on what was proved."""
    return run.request.budget.judge(
        proof["figures"]["after"],
        {**run.baseline, **proof["figures"]["baseline"]},
        proof["ratios"]["after"],
        accept_predicted=run.request.accept_predicted,
    )


def best_single(run: Run) -> Outcome | None:
    """The fastest of the plain backends whose quality holds: what merely switching runtimes gives.

    Paredown's own engine is no runtime to switch to, unless it was the only one asked for.
    """
    switched = set(plain([o.candidate for o in run.search.outcomes]))
    quality_limits = [x for x in run.goal.limits if x.metric in ("drop", "fidelity", "score")]
    fit = [
        o
        for o in run.search.outcomes
        if o.state == "done"
        and o.candidate in switched
        and holds_artefact(run.request.out, o)
        and all(x.metric in o.values and x.miss(o.values[x.metric]) == 0 for x in quality_limits)
    ]
    others = [o for o in fit if not runtime.backend(o.candidate.backend).ours]
    return min(others or fit, key=lambda o: o.values["latency"], default=None)


def plain(every: list[Candidate]) -> list[Candidate]:
    """What merely switching the runtime gives: no technique but precision and folding."""
    found = [
        c
        for c in every
        if all(
            label in (OFF, "0") or axis in PRECISION_ONLY or axis == "backend"
            for axis, label in c.point
        )
    ]
    # What the search measures first: the likely best, and inductor last, which compiles for long.
    return sorted(found, key=lambda c: ORDER.index(c.backend) if c.backend in ORDER else len(ORDER))


def openers(every: list[Candidate], own_backend: str, effort_s: float) -> list[Candidate]:
    """What a search measures before it predicts: the plain backends, in a short search each in
    its faster precision only.
    """
    found = [c for c in plain(every) if c.backend != own_backend] or plain(every)
    if effort_s >= THOROUGH_S or not fast_bf16():
        return found
    reduced = {c.backend for c in found if dict(c.point).get("bf16", OFF) != OFF}
    return [c for c in found if c.backend not in reduced or dict(c.point).get("bf16", OFF) != OFF]
