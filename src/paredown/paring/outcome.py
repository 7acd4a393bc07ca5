"""From a finished run to its document: figures, verdict and what happened, in words and numbers."""

from __future__ import annotations

import json
from typing import Any

from paredown.figure import Figure, counted
from paredown.paring import candidates, predicting
from paredown.paring.measuring import trial_folder
from paredown.paring.proving import judged
from paredown.paring.run import Run
from paredown.recipe import Recipe
from paredown.result import (
    ConstraintResult,
    DownDoc,
    MemoryPoint,
    ModuleRow,
    OperatorRow,
    Side,
    SiteReport,
    Trial,
    Verdict,
)
from paredown.search import pricing, trial
from paredown.search.loop import Outcome

COUNTS = ("size", "macs", "params", "memory")
"""Costs whose ratio to the original needs no pairing of runs."""


def document(run: Run) -> DownDoc:
    """The result of a run as `pare down --json` writes it."""
    from paredown.cost import price

    before = price(run.graph, run.request.device, backend=run.request.own_backend)
    results, verdict, after = _verdict(run)
    detail = _detail(run, run.winner)
    doc = DownDoc(
        target=run.request.target,
        device=run.request.device.name,
        verdict=verdict,
        changed=run.winner is not None and not _unchanged(run.winner, run.request.own_backend),
        interrupted=run.interrupted,
        constraints=results,
        before=_before(run),
        after=after,
        best_single_backend=_single(run),
        recipe=recipe(run, run.winner).to_dict(),
        trials=[_trial(run, o) for o in run.search.outcomes],
        sites=[SiteReport(**s) for s in detail.get("sites", [])],
        left_out=run.choices.left_out,
        binding=run.request.budget.binding(results),
        layers_before=before.modules(),
        layers_after=[ModuleRow(**r) for r in detail.get("modules", [])],
        memory_before=before.memory(),
        memory_after=[MemoryPoint(**r) for r in detail.get("memory", [])],
        waterline_before=before.waterline(),
        waterline_after=detail.get("waterline", {}),
        operators_before=before.operators(),
        operators_after=[OperatorRow(**r) for r in detail.get("operators", [])],
        effort_s=run.seconds,
        seed=run.request.seed,
        threads=run.request.threads,
        a_a_ratio=run.proof["a_a"] if run.proof else None,
        folder=str(run.request.out),
        notes=_notes(run, after),
        fingerprint=run.fingerprint,
    )
    from paredown.report.words import headline

    return doc.model_copy(update={"headline": headline(doc)})


def recipe(run: Run, outcome: Outcome | None) -> Recipe:
    """The recipe of a candidate; the original in its own backend when there is none."""
    if outcome is None:
        return candidates.recipe_of(run.request, run.request.own_backend)
    return run.space.recipe(
        outcome.candidate,
        target=candidates.target_of(run.request.workload),
        threads=run.request.threads,
        seed=run.request.seed,
    )


def _verdict(run: Run) -> tuple[list[ConstraintResult], Verdict, Side]:
    budget = run.request.budget
    if run.proof is None or run.winner is None:
        # The original itself: nothing lost, nothing gained.
        before = _before(run)
        own = {**before.figures, "drop": counted(0, "score"), "fidelity": counted(1, "1")}
        one = {m: counted(1, "x") for m in before.figures}
        results = budget.judge(
            own, before.figures, one, accept_predicted=run.request.accept_predicted
        )
        return results, budget.verdict(results, [], strict=run.request.strict), before
    results = judged(run, run.proof)
    every = [_ratios(run, o) for o in run.search.outcomes if o.state == "done"]
    verdict = budget.verdict(results, every, strict=run.request.strict)
    return results, verdict, _side(run, run.winner, run.proof, "after")


def _side(run: Run, outcome: Outcome, proof: dict[str, Any], key: str) -> Side:
    """A candidate with what its proof found, and what its trial counted."""
    figures = {**_counts(outcome), **proof["figures"][key]}
    return Side(
        name=outcome.candidate.text(),
        backend=outcome.candidate.backend,
        recipe=recipe(run, outcome).to_dict(),
        figures=figures,
        ratios=_with_size(run, proof["ratios"][key], figures),
    )


def _ratios(run: Run, outcome: Outcome) -> dict[str, Figure]:
    """A trial's costs relative to the original: the paired latency, and what was counted."""
    report = trial.load({"detail": {}, **outcome.body})
    return _with_size(run, report.ratios, report.figures)


def _with_size(
    run: Run, ratios: dict[str, Figure], figures: dict[str, Figure]
) -> dict[str, Figure]:
    """Ratios of what was counted beside those that were measured in pairs or predicted."""
    counts = {m: f for m, f in figures.items() if m in COUNTS and m not in ratios}
    return {**ratios, **pricing.ratios(counts, run.baseline)}


def _counts(outcome: Outcome) -> dict[str, Figure]:
    figures = trial.load({"detail": {}, **outcome.body}).figures
    return {m: f for m, f in figures.items() if m in COUNTS and m != "size"}


def _before(run: Run) -> Side:
    proved = run.proof["figures"]["baseline"] if run.proof else {}
    return Side(
        name="the original",
        backend=run.request.own_backend,
        figures={**run.baseline, **proved},
    )


def _single(run: Run) -> Side | None:
    """What merely switching the runtime gives, from the same interleaved run as the result."""
    if run.single is None or run.proof is None:
        return None
    key = "single" if "single" in run.proof["figures"] else "after"
    return _side(run, run.single, run.proof, key)


def _trial(run: Run, outcome: Outcome) -> Trial:
    predicted: dict[str, Figure] = {}
    measured: dict[str, Figure] = {}
    seconds = 0.0
    if outcome.state == "done":
        report = trial.load({"detail": {}, **outcome.body})
        predicted, seconds = report.predicted, report.seconds
        # Predictions that the search decided by stand among the figures; they were not measured.
        measured = {m: f for m, f in report.figures.items() if f.how != "predicted"}
    return Trial(
        id=outcome.id,
        state=outcome.state,
        reason=outcome.body.get("reason"),
        recipe=recipe(run, outcome).to_dict(),
        predicted=predicted,
        measured=measured,
        seconds=seconds,
    )


def _detail(run: Run, outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    path = trial_folder(run.request.out, outcome.id) / trial.RESULT
    body = json.loads(path.read_text())
    return {**body["detail"], "sites": body["sites"], "notes": body["notes"]}


def _unchanged(outcome: Outcome, own: str) -> bool:
    return (
        not any(
            label not in ("off", "0")
            for axis, label in outcome.candidate.point
            if axis != "backend"
        )
        and outcome.candidate.backend == own
    )


def _notes(run: Run, after: Side) -> list[str]:
    notes = list(run.notes)
    w = run.request.workload
    if run.proof is not None and w.verify is None and w.evaluate is not None:
        notes.append(
            "no `verify`: half of the examples of `evaluate` guided the search, the other half "
            "(by a hash of their index) decided"
        )
    if any(c.implied for c in run.request.budget):
        implied = next(c for c in run.request.budget if c.implied)
        mine = "" if implied.kind.name == "drop" else ", which is not your metric"
        notes.append(f"no quality constraint was given: gated on {implied.text}{mine}")
    notes += predicting.notes(run.request, after.backend, after.figures.get("memory"))
    detail = _detail(run, run.winner)
    return [*notes, *detail.get("notes", []), *run.graph.notes]
