"""Predict, rank, measure the most promising, correct, repeat, until the effort is spent.

Every fourth candidate comes from Optuna's sampler instead, so that a wrong prediction cannot hide a
region for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from paredown.errors import CandidateFailed, ParedownError
from paredown.search.goal import Goal, likely
from paredown.search.predict import Estimate, Predictor
from paredown.search.space import Candidate
from paredown.search.store import State, Store

KAPPA = 0.7
SAMPLER_EVERY = 4
SAMPLER_FROM = 10
"""Trials before the sampler is asked at all: a short search has none to spare."""
SAMPLER_TRIES = 4
KEPT_FREE = 2
"""Candidates that a plain backend leaves time for: the first may miss, or take longer."""
LOOKED_AT = 8192
"""Of more candidates than this a fresh sample is predicted each turn: a hundred thousand would take
seconds, and the best of so many is near the best of all."""


@dataclass(frozen=True)
class Measured:
    """What one trial found: ``values`` by metric (SI), and a JSON-able ``body`` for the report."""

    values: dict[str, float]
    body: dict[str, Any] = field(default_factory=dict)


class Measure(Protocol):
    """Runs one candidate for real; raises ``ParedownError`` when it fails."""

    def __call__(self, id: int, candidate: Candidate) -> Measured:
        """Measure one candidate as trial ``id``."""
        ...


@dataclass
class Outcome:
    """One candidate that was tried."""

    id: int
    candidate: Candidate
    state: State
    values: dict[str, float]
    body: dict[str, Any]
    score: float


@dataclass
class Search:
    """A search over ``candidates`` towards ``goal``; call :meth:`run`."""

    candidates: list[Candidate]
    goal: Goal
    predictor: Predictor
    store: Store
    measure: Measure
    first: list[Candidate] = field(default_factory=list)
    """Measured before anything is predicted: the plain backends."""
    seconds: Callable[[Candidate], float] = lambda _: 1.0
    """What measuring a candidate is expected to take."""
    left: Callable[[], float] = lambda: float("inf")
    """Seconds of effort left: a candidate that takes longer is not begun."""
    on_trial: Callable[[Outcome], None] | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    @cached_property
    def _valid(self) -> frozenset[Candidate]:
        return frozenset(self.candidates)

    def recall(self) -> None:
        """Take in the trials that an earlier run of this search finished, scored by the goal of
        now: a search may be resumed with another budget.
        """
        for kept in self.store.finished():
            values = dict(kept.body.get("values", {}))
            score = self.goal.score(values) if kept.state == "done" else kept.score
            self._take(Outcome(kept.id, kept.candidate, kept.state, values, kept.body, score))

    def run(self, *, more: Callable[[], bool], limit: int | None = None) -> None:
        """Try candidates while ``more()`` and at most ``limit`` of them."""
        count = 0
        # However little the effort, one candidate is measured: no verdict follows from none.
        while (limit is None or count < limit) and (more() or not self.outcomes):
            picked = self._opener() or self._next(len(self.outcomes))
            if picked is None:
                return
            self._try(*picked)
            count += 1

    def best(self) -> Outcome | None:
        """The finished candidate with the lowest score."""
        done = [o for o in self.outcomes if o.state == "done"]
        return min(done, key=lambda o: o.score, default=None)

    def ranked(self) -> list[Outcome]:
        """Finished candidates, best first."""
        return sorted((o for o in self.outcomes if o.state == "done"), key=lambda o: o.score)

    def _tried(self) -> set[Candidate]:
        return {o.candidate for o in self.outcomes}

    def _next(self, turn: int) -> tuple[int, Candidate] | None:
        left = self._open()
        if not left:
            return None
        if turn >= SAMPLER_FROM and turn % SAMPLER_EVERY == SAMPLER_EVERY - 1:
            for _ in range(SAMPLER_TRIES):
                id, candidate = self.store.propose()
                why = self._why_not(candidate)
                if why is None:
                    return id, candidate
                self.store.tell(id, "skipped", 0.0, {"reason": why, "proposal": True})
        candidate = self._most_promising(left)
        return self.store.begin(candidate), candidate

    def _opener(self) -> tuple[int, Candidate] | None:
        """The next of `first`, while it leaves time for `KEPT_FREE` of what promises most; the very
        first always runs, for it shows how long a trial takes here.
        """
        tried = self._tried()
        opener = next((c for c in self.first if c not in tried), None)
        if opener is None:
            return None
        others = [c for c in self._open() if c != opener] if self.outcomes else []
        needed = self.seconds(opener)
        if others:
            best = others[int(self._expected(self._estimates(others)).argmin())]
            needed += min(KEPT_FREE, len(others)) * self.seconds(best)
        if self.outcomes and needed > self.left():
            return None
        return self.store.begin(opener), opener

    def _open(self) -> list[Candidate]:
        """Candidates not tried yet that the time left allows; a sample where there are many."""
        tried, every = self._tried(), self.candidates
        if len(every) > LOOKED_AT:
            every = random.Random(len(self.outcomes)).sample(every, LOOKED_AT)
        return [c for c in every if c not in tried and self.seconds(c) <= self.left()]

    def _why_not(self, candidate: Candidate) -> str | None:
        """Why a candidate that was not chosen from the open ones cannot be run, None if it can."""
        if candidate in self._tried():
            return "tried before"
        if candidate not in self._valid:
            return "not a valid combination"
        return None if self.seconds(candidate) <= self.left() else "too long for the time left"

    def _estimates(self, open: list[Candidate]) -> list[dict[str, Estimate]]:
        """Each candidate's metrics as predicted and corrected so far."""
        columns = {m: self.predictor.estimate(open, m) for m in self.goal.metrics}
        return [{m: e[i] for m, e in columns.items()} for i in range(len(open))]

    def _expected(self, estimates: list[dict[str, Estimate]]) -> np.ndarray[Any, Any]:
        """What each candidate is expected to score; lower is better."""
        return np.array([self.goal.expected(e, KAPPA) for e in estimates])

    def _most_promising(self, open: list[Candidate]) -> Candidate:
        """The most gain per second, unless it would leave too little time for the most gain.

        Where nothing meets the budget yet, one that likely does comes first all the same.
        """
        estimates = self._estimates(open)
        scores = self._expected(estimates)
        best = self.best()
        deepest = int(scores.argmin())
        if best is None or scores[deepest] >= best.score:
            return open[deepest]
        seconds = np.array([self.seconds(c) for c in open])
        quickest = int(np.argmax((best.score - scores) / seconds))
        first = not self.goal.met(best.values) and self.goal.met(likely(estimates[quickest]))
        crowded = self.left() - seconds[quickest] < seconds[deepest]
        return open[deepest if crowded and not first else quickest]

    def _try(self, id: int, candidate: Candidate) -> None:
        try:
            found = self.measure(id, candidate)
        except ParedownError as e:
            state: State = "failed" if isinstance(e, CandidateFailed) else "skipped"
            body = {"reason": str(e), "error": type(e).__name__}
            self.store.tell(id, state, 0.0, body)
            self._take(Outcome(id, candidate, state, {}, body, float("inf")))
            return
        score = self.goal.score(found.values)
        body = {**found.body, "values": found.values}
        self.store.tell(id, "done", score, body)
        self._take(Outcome(id, candidate, "done", found.values, body, score))

    def _take(self, outcome: Outcome) -> None:
        if outcome.body.get("proposal"):
            return
        self.outcomes.append(outcome)
        if outcome.state == "done":
            self.predictor.learn(outcome.candidate, outcome.values)
        if self.on_trial is not None:
            self.on_trial(outcome)
