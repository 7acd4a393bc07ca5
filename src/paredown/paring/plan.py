"""`plan down`: what would be tried, in what time and on what disk space, before any compute."""

from __future__ import annotations

from typing import Any

from torch import nn

from paredown.figure import predicted
from paredown.graph.capture import capture
from paredown.paring import candidates, request
from paredown.paring.effort import Grant
from paredown.paring.measuring import TRIAL_S
from paredown.paring.predicting import notes, original
from paredown.paring.prior import Prior, prior
from paredown.paring.survey import SHARE, cuts
from paredown.result import PlanDoc
from paredown.search.space import Space
from paredown.workload import Workload

SHOWN = 20
ASSUMED = Grant(100, 0.1)
"""Steps of a recovery as a plan shows them: timing one would be compute."""
TRIAL_OVERHEAD_S = 2.5
"""Lowering, gates and judging of one trial beside its timing, in seconds: a rule of thumb."""


def plan(target: str | nn.Module | Workload, inputs: Any = None, **options: Any) -> PlanDoc:
    """Candidates by predicted cost, techniques with their sites, backends, time and disk.

    Captures and prices on the device description only: nothing is run, lowered or measured.
    """
    asked = request.make(target, inputs, **options)
    graph = capture(asked.workload)
    found = candidates.choices(asked, graph, ASSUMED)
    space = candidates.space(asked, found, lambda _: [])
    guess = prior(space, graph, asked.device, scale=asked.workload.scale)
    space.refused = guess.refused
    # Nothing is measured: the original's own figures are predictions as well.
    guess.baseline = {m: f.known() for m, f in original(graph, asked.device).items() if f.value}
    base = {**guess.base, **guess.baseline, "score": asked.workload.scale or 1.0}
    base |= {c.metric: base[c.kind.name] for c in asked.budget if c.part and c.metric not in base}
    goal = candidates.goal(asked, base)
    every = space.candidates()
    ranked = sorted(every, key=lambda c: goal.score({m: guess(c, m) for m in goal.metrics}))
    size = guess.base["size"]
    count = min(len(every), max(1, int(asked.effort_s / (TRIAL_S + TRIAL_OVERHEAD_S))))
    slow = candidates.SLOW_TO_COMPILE
    backends = dict(asked.backends)
    if slow in found.left_out:
        backends[slow] = found.left_out.pop(slow)
    techniques = {c.name: f"{len(c.sites.ok)} sites" for c in found.used}
    return PlanDoc(
        target=asked.target,
        device=asked.device.name,
        constraints=asked.budget.texts,
        candidates=[
            {
                "candidate": c.text(),
                "recipe": space.recipe(
                    c,
                    target=candidates.target_of(asked.workload),
                    threads=asked.threads,
                    seed=asked.seed,
                ).to_dict(),
                "predicted": {m: guess(c, m) for m in goal.metrics},
            }
            for c in ranked[:SHOWN]
        ],
        backends=backends,
        techniques={**techniques, **found.left_out},
        effort_s=asked.effort_s,
        expected_s=predicted(asked.effort_s, "s", reason="the effort bounds it"),
        disk_bytes=predicted(
            count * size, "B", reason=f"about {count} trials, at most the original's size each"
        ),
        notes=[
            f"{len(every)} candidates in all; the best {min(SHOWN, len(every))} are shown",
            *_surveyed(space, guess),
            *notes(asked, ranked[0].backend if ranked else asked.own_backend),
        ],
    )


def _surveyed(space: Space, guess: Prior) -> list[str]:
    """What is judged before the first trial."""
    count = len(cuts(space, guess))
    text = f"first {count} cuts are judged alone, in at most {SHARE:.0%} of the effort"
    return [text] if count else []
