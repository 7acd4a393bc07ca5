"""The trial store: an Optuna study in SQLite. A search killed at any moment goes on from here.

A trial is begun before its child starts and told when its result is in. The child itself writes its
result atomically into the trial's folder first, so that a kill between the two loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from paredown.errors import InputError
from paredown.search.space import Axis, Candidate, as_params, from_params

STUDY = "search"
State = Literal["done", "skipped", "failed"]
FAILED_SCORE = 1e9


@dataclass(frozen=True)
class Kept:
    """One finished trial as the store holds it."""

    id: int
    candidate: Candidate
    state: State
    score: float
    body: dict[str, Any]


class Store:
    """Begin, tell and read back trials. ``identity`` names what the measurements belong to."""

    def __init__(
        self, path: Path, axes: Sequence[Axis], identity: dict[str, str], *, resume: bool, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.axes = list(axes)
        if path.exists() and not resume:
            raise InputError(f"{path.parent} already holds a search: use --resume or another --out")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=4)
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        self._asked: dict[int, optuna.Trial] = {}
        self.study = optuna.create_study(
            storage=self.storage, study_name=STUDY, sampler=sampler, load_if_exists=True
        )
        self._study_id = self.storage.get_study_id_from_name(STUDY)
        known = self.study.user_attrs.get("identity")
        if known is None:
            self.study.set_user_attr("identity", identity)
        else:
            for what, value in identity.items():
                if known.get(what) != value:
                    raise InputError(
                        f"cannot resume {path.parent}: the {what} is not the one this search was "
                        "begun with; start anew with another --out"
                    )
        self._distributions: dict[str, BaseDistribution] = {
            a.name: CategoricalDistribution(a.options) for a in self.axes
        }

    def begin(self, candidate: Candidate) -> int:
        """Record that a candidate is about to run; returns the trial's number."""
        self.study.enqueue_trial(as_params(candidate))
        return self._ask().number

    def propose(self) -> tuple[int, Candidate]:
        """A candidate from Optuna's own sampler, begun."""
        trial = self._ask()
        return trial.number, from_params(trial.params, self.axes)

    def tell(self, id: int, state: State, score: float, body: dict[str, Any]) -> None:
        """Finish a trial. ``body`` is JSON-able and comes back from :meth:`finished`."""
        trial = self._asked.pop(id, None) or optuna.Trial(self.study, self._row(id))
        trial.set_user_attr("body", json.dumps(body))
        trial.set_user_attr("state", state)
        if state == "skipped":
            self.study.tell(id, state=TrialState.PRUNED)
        else:
            self.study.tell(id, score if state == "done" else FAILED_SCORE)

    def _ask(self) -> optuna.Trial:
        trial = self.study.ask(self._distributions)
        self._asked[trial.number] = trial
        return trial

    def _row(self, id: int) -> int:
        """The storage's own number of a trial that an earlier run began."""
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, id)

    def finished(self) -> list[Kept]:
        """Every trial told, in the order they were begun."""
        out: list[Kept] = []
        for t in self.study.get_trials(deepcopy=False):
            if t.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            state = t.user_attrs.get("state", "done")
            score = t.value if t.value is not None else FAILED_SCORE
            body = json.loads(t.user_attrs.get("body", "{}"))
            out.append(Kept(t.number, from_params(t.params, self.axes), state, score, body))
        return out

    def interrupted(self) -> list[tuple[int, Candidate]]:
        """Trials begun but never told: the search was killed while they ran."""
        return [
            (t.number, from_params(t.params, self.axes))
            for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]

    def spent(self) -> float:
        """Seconds of effort that earlier runs recorded."""
        return float(self.study.user_attrs.get("spent_s", 0.0))

    def spend(self, seconds: float) -> None:
        """Record the effort used so far."""
        self.study.set_user_attr("spent_s", seconds)
