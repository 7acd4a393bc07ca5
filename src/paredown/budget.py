"""Budgets: the constraints of a request, held against workload, machine and figures; the verdict.

The definitions are CONTRACTS, "Metrics and constraints" and "Verdicts". One constraint stands in
`constraint`, how it is written in `constraint_text`. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paredown.constraint import LOOP_PARTS, METRICS, UNITS, Constraint, quotient
from paredown.constraint_text import parse_one
from paredown.errors import BudgetError
from paredown.figure import Figure
from paredown.result import ConstraintResult, Verdict

if TYPE_CHECKING:
    from paredown.workload import Workload

__all__ = ["METRICS", "UNITS", "Budget", "Constraint", "gap", "parse", "quotient"]


@dataclass(frozen=True)
class Budget:
    """The constraints of one request, checked against each other."""

    constraints: tuple[Constraint, ...]
    scale: float | None = None
    """The scale of the workload's score, once ``check_workload`` has seen it."""

    def __iter__(self) -> Iterator[Constraint]:
        """The constraints, in the order they were given."""
        return iter(self.constraints)

    def __len__(self) -> int:
        """How many constraints there are."""
        return len(self.constraints)

    @property
    def costs(self) -> tuple[Constraint, ...]:
        """Constraints on what a run costs."""
        return tuple(c for c in self.constraints if not c.kind.quality)

    @property
    def quality(self) -> tuple[Constraint, ...]:
        """Constraints on what the outputs are worth."""
        return tuple(c for c in self.constraints if c.kind.quality)

    @property
    def texts(self) -> list[str]:
        """The constraints as the user wrote them."""
        return [c.text for c in self.constraints]

    def check_workload(self, workload: Workload, *, random_weights: bool | None = None) -> Budget:
        """Resolve ``%`` of a score's scale, or raise ``BudgetError``; runs nothing.

        Refused: ``score`` and ``drop`` without ``evaluate``, ``%`` of an unknown scale, values the
        scale makes void or impossible, any quality constraint on random weights, and parts of the
        latency that this kind of run does not have.
        """
        if random_weights is None:
            random_weights = workload.source is not None and workload.source.random_weights
        out = [self._fit(c, workload, random_weights) for c in self.constraints]
        return replace(self, constraints=tuple(out), scale=workload.scale)

    def _fit(self, c: Constraint, workload: Workload, random_weights: bool) -> Constraint:
        name, scale = c.kind.name, workload.scale
        if c.part in LOOP_PARTS and workload.run not in ("generate", "stream"):
            raise BudgetError(
                f"{c.text!r}: only runs that generate have {c.metric}; "
                f"this one is {workload.run!r}, use latency"
            )
        if "tokens/s" in c.text and workload.run != "generate":
            raise BudgetError(f"{c.text!r}: this run is {workload.run!r} and makes no tokens")
        if "runs/s" in c.text and workload.run == "generate":
            raise BudgetError(f"{c.text!r}: a generation is counted in tokens/s")
        if not c.kind.quality:
            return c
        if random_weights:
            raise BudgetError(
                f"{c.text!r} means nothing with --random-weights: an untrained network "
                "has no quality to lose"
            )
        if name in ("score", "drop") and workload.evaluate is None and workload.verify is None:
            raise BudgetError(
                f"{c.text!r} needs `evaluate`: give the workload evaluate=..., or ask for fidelity"
            )
        if c.unit == "%":
            if scale not in (1, 1.0, 100, 100.0):
                raise BudgetError(
                    f"{c.text!r}: % needs the scale of the score, which is "
                    f"{'unknown' if scale is None else f'{scale:g}'}: "
                    "give the workload scale=1 or scale=100, or an absolute value"
                )
            c = replace(c, value=c.value / 100 * scale, unit="score")
        if scale is not None and c.unit == "score":
            if name == "drop" and c.value >= scale:
                hint = f" (did you mean drop <= {c.value:g}%?)" if scale == 1 else ""
                raise BudgetError(f"{c.text!r} allows any loss on a scale of {scale:g}{hint}")
            if name == "score" and c.value > scale:
                hint = f" (did you mean score >= {c.value:g}%?)" if scale == 1 else ""
                raise BudgetError(f"{c.text!r} is above the scale of {scale:g}{hint}")
        return c

    def check_machine(
        self,
        unmeasurable: Mapping[str, str],
        *,
        device: str = "this",
        accept_predicted: bool = False,
        unpredictable: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse what cannot be measured here, unless predictions are accepted and can be had.

        ``unmeasurable`` and ``unpredictable`` map metrics to reasons. Nothing is measured on a
        ``device`` other than ``this``: without ``accept_predicted`` it is refused whatever is
        asked.
        """
        if device != "this" and not accept_predicted:
            raise BudgetError(
                f"--device {device} is not this machine and cannot be measured here: "
                "--accept predicted decides on predictions"
            )
        for c in self.costs:
            if c.kind.how == "counted":
                continue
            why = unmeasurable.get(c.metric) or unmeasurable.get(c.kind.name)
            if device != "this":
                why = f"{device} is not this machine"
            if why is None:
                continue
            cannot = (unpredictable or {}).get(c.kind.name)
            if c.part and c.part not in LOOP_PARTS:
                cannot = f"{c.kind.name} is predicted as one figure, without {c.part}"
            if cannot is not None:
                raise BudgetError(f"{c.text!r} cannot be measured here: {why}; and {cannot}")
            if not accept_predicted:
                raise BudgetError(
                    f"{c.text!r} cannot be measured here: {why}: "
                    "--accept predicted decides on a prediction"
                )

    def gated(self, workload: Workload, *, random_weights: bool = False) -> Budget:
        """Add a quality gate where the user named none (CONTRACTS, Quality).

        ``drop <= 1%`` where the workload can be judged on a known scale, else ``fidelity >= 0.99``,
        which is not the user's metric; nothing on random weights.
        """
        if self.quality or random_weights:
            return self
        if workload.evaluate is not None and workload.scale in (1, 1.0, 100, 100.0):
            allowed = 0.01 * workload.scale
            extra = Constraint("drop", "<=", allowed, "score", None, "drop <= 1%", True)
        else:
            extra = Constraint("fidelity", ">=", 0.99, "1", None, "fidelity >= 0.99", True)
        return replace(self, constraints=(*self.constraints, extra), scale=workload.scale)

    def judge(
        self,
        achieved: Mapping[str, Figure],
        baseline: Mapping[str, Figure] | None = None,
        ratios: Mapping[str, Figure] | None = None,
        *,
        accept_predicted: bool = False,
    ) -> list[ConstraintResult]:
        """Judge every constraint; a paired ratio is preferred where one is asked for."""
        out: list[ConstraintResult] = []
        for c in self.constraints:
            figure = c.pick(achieved)
            if c.unit == "x" and ratios and c.metric in ratios:
                figure = ratios[c.metric]
            base = c.pick(baseline) if baseline else None
            out.append(c.judge(figure, base, accept_predicted=accept_predicted))
        return out

    def verdict(
        self,
        results: Iterable[ConstraintResult],
        candidates: Iterable[Mapping[str, Figure]] | None = None,
        *,
        strict: bool = False,
    ) -> Verdict:
        """Give the verdict on judged constraints (CONTRACTS, Verdicts).

        ``candidates`` holds, for every candidate that passed its gates, metric -> ratio to the
        baseline (unit ``x``): when none of them gains on any budgeted cost the answer to an unmet
        budget is ``no_gain``. None: gains are not asked about. ``strict`` demands proven.

        Where a prediction is among the figures, the verdict says so: it also steered the search, so
        that neither ``infeasible`` nor ``no_gain`` could rest on measurement alone.
        """
        results = list(results)
        open_ = [r for r in results if not r.met or (strict and not r.proven)]
        predicted = any(r.achieved.how == "predicted" for r in results)
        if not open_:
            return "predicted_met" if predicted else "met"
        if predicted:
            return "predicted_infeasible"
        if candidates is not None and not any(self.gains(c) for c in candidates):
            return "no_gain"
        return "infeasible"

    def gains(self, ratios: Mapping[str, Figure]) -> bool:
        """Whether a candidate's interval lies on the good side of 1.0 for some budgeted cost."""
        for c in self.costs or tuple(_ANY_COST):
            figure = ratios.get(c.metric) or ratios.get(c.kind.name)
            if figure is None or figure.value is None:
                continue
            low, high = figure.spread or (figure.value, figure.value)
            if (high < 1.0) if c.op == "<=" else (low > 1.0):
                return True
        return False

    def binding(self, results: Iterable[ConstraintResult]) -> str | None:
        """The text of the constraint furthest from being met, None when all are met."""
        unmet = [r for r in results if not r.met]
        return max(unmet, key=gap).text if unmet else None


def gap(result: ConstraintResult) -> float:
    """How far a constraint is from being met, as a share of what was asked; 0 when met.

    An unavailable figure is infinitely far.
    """
    if result.met:
        return 0.0
    if result.achieved.value is None or (result.why and not result.achieved.decides):
        return math.inf
    over = result.achieved.value - result.value
    return max(0.0, over if result.op == "<=" else -over) / max(abs(result.value), 1e-12)


def parse(texts: Iterable[str]) -> Budget:
    """Parse constraints such as ``latency <= 0.3x``; raises ``BudgetError``, one line."""
    texts = list(texts)
    if not texts:
        raise BudgetError("no constraint given: say for instance --to 'latency <= 0.5x'")
    constraints = tuple(parse_one(t) for t in texts)
    _agree(constraints)
    for c in constraints:
        if c.op != c.kind.better:
            raise BudgetError(
                f"{c.text!r}: {c.kind.name} is budgeted from the other side, "
                f"write {c.metric} {c.kind.better} ..."
            )
    return Budget(constraints)


def _agree(constraints: tuple[Constraint, ...]) -> None:
    """Refuse two bounds on one thing in one unit: on the same side, or crossed."""
    for i, a in enumerate(constraints):
        for b in constraints[:i]:
            if (a.metric, a.unit) != (b.metric, b.unit):
                continue
            if a.op == b.op:
                raise BudgetError(f"{b.text!r} and {a.text!r} bound {a.metric} twice: keep one")
            low, high = (a, b) if a.op == ">=" else (b, a)
            if low.value > high.value:
                raise BudgetError(f"{b.text!r} and {a.text!r} contradict each other")


_ANY_COST = [
    Constraint(m.name, m.better, 1.0, "x", m.relative_to, m.name)
    for m in METRICS.values()
    if not m.quality
]
