"""What each cut alone does to the quality, before anything is trained: a cheap pass that tells the
search how deep it may hope to cut.

Judged in the original's own backend with fresh batch-norm statistics where there is data for them,
so nothing is exported, compiled or timed.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from paredown.files import write_text
from paredown.measure.child import Jobs, Limits, tell
from paredown.paring.measuring import examples_for
from paredown.paring.prior import Prior, Step
from paredown.paring.request import Request
from paredown.recipe import Recipe
from paredown.registry import technique
from paredown.report.progress import Progress
from paredown.search import trial
from paredown.search.space import OFF, SPARED, Candidate, Space
from paredown.technique import Stage

SHARE = 0.1
"""Share of the effort that may be spent here; cuts left out are interpolated."""
STATISTICS = "statistics"


@dataclass(frozen=True)
class Asked:
    """The job: one spec per cut, in the order in which they matter."""

    specs: list[tuple[Step, trial.Spec]]
    seconds: float


def survey(request: Request, space: Space, guess: Prior, jobs: Jobs, progress: Progress) -> None:
    """Tell ``guess`` the loss of each cut by metric (``drop``, ``fidelity``).

    Kept in the run's folder, so that a resumed search begins with the same.
    """
    kept = request.out / "shared" / "survey.json"
    if not kept.exists():
        steps = cuts(space, guess)
        if not steps:
            return
        progress.update(f"what {len(steps)} cuts alone lose")
        asked = Asked(
            [(s, _spec(request, space, guess, s)) for s in steps], SHARE * request.effort_s
        )
        found = jobs.run(
            _judge,
            asked,
            limits=Limits.default(max(60.0, request.effort_s)),
            on_message=lambda m: progress.update(f"what cuts alone lose: {m}"),
        )
        write_text(kept, json.dumps(found))
    for row in json.loads(kept.read_text()):
        if "loss" in row:
            guess.surveyed[(row["technique"], row["label"])] = row["loss"]


def note(guess: Prior) -> str | None:
    """What was found, for the report; None where nothing was surveyed."""
    metric = "drop" if any("drop" in x for x in guess.surveyed.values()) else "fidelity"
    found = [
        f"{name} {label} {100 * loss[metric]:.2g} %"
        for (name, label), loss in sorted(guess.surveyed.items())
    ]
    what = "score" if metric == "drop" else "fidelity"
    return f"{what} lost by each cut alone, nothing trained: {', '.join(found)}" if found else None


def _judge(asked: Asked) -> list[dict[str, Any]]:
    """Each cut's losses against the original; one that fails is the trials' to report."""
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    common = asked.specs[0][1]
    torch.set_num_threads(common.threads)
    original = common.source.get()
    before = trial.original_scores(common, original)
    for (name, label), spec in asked.specs:
        if rows and time.monotonic() - start > asked.seconds:
            break
        tell(f"{name} {label}")
        try:
            workload, _ = trial.rewrite(spec, original)
        except Exception as e:  # whatever is wrong with one cut costs only this one here
            rows.append({"technique": name, "label": label, "failed": f"{type(e).__name__}: {e}"})
            continue
        with torch.inference_mode():
            figures = spec.examples.judge(original, workload.model.eval(), before)
        loss = {"fidelity": 1.0 - figures["fidelity"].known()}
        if "drop" in figures:
            loss["drop"] = figures["drop"].known()
        rows.append({"technique": name, "label": label, "loss": loss})
    return rows


def cuts(space: Space, guess: Prior) -> list[Step]:
    """Every cut, each technique's middle one first, then its ends: what is left out when the time
    is up lies between two that are known.
    """
    each = [
        [(c.name, label) for label in _outwards(list(c.variants))]
        for c in space.choices
        if c.name in guess.cuts and not c.always
    ]
    return [step for turn in itertools.zip_longest(*each) for step in turn if step is not None]


def _outwards(labels: list[str]) -> Iterable[str]:
    """The middle, the last, the first, then the others."""
    first = dict.fromkeys([len(labels) // 2, len(labels) - 1, 0, *range(len(labels))])
    return (labels[i] for i in first if labels)


def _spec(request: Request, space: Space, guess: Prior, step: Step) -> trial.Spec:
    chosen = {a.name: a.options[0] for a in space.axes()}
    chosen |= {c.name: OFF for c in space.choices if not c.always}
    chosen |= {SPARED: "0"} if SPARED in chosen else {}
    chosen[step[0]] = step[1]
    for name in guess.recovers:
        chosen[name] = STATISTICS
    candidate = Candidate(tuple(chosen.items()))
    recipe = space.recipe(candidate, target=None, threads=request.threads, seed=request.seed)
    return trial.Spec(
        0,
        request.source,
        _cut_only(recipe),
        request.out,
        request.out / "shared",
        request.device,
        request.threads,
        0.0,
        examples_for(request, deciding=False),
        timed=False,
        seed=request.seed,
    )


def _cut_only(recipe: Recipe) -> Recipe:
    """The steps that a trial of the same cut would share."""
    steps = [s for s in recipe.steps if technique(s.technique).stage <= Stage.RECOVERY]
    return recipe.model_copy(update={"steps": steps})
