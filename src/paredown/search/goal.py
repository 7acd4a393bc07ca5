"""What a search minimises: first how far constraints are missed, then the budgeted cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from paredown.search.predict import Estimate, is_cost

MISS = 10.0
"""One unit of missed constraint outweighs any saving: e^10 in cost."""


@dataclass(frozen=True)
class Limit:
    """One constraint in absolute terms: ``value`` in the metric's SI unit, ``op`` <= or >=."""

    metric: str
    op: str
    value: float
    scale: float = 0.01
    """The size of one unit of miss for metrics that are not logarithmic."""

    def miss(self, value: float) -> float:
        """How far a value is from meeting this; 0 when it does. Costs in log units."""
        sign = 1.0 if self.op == "<=" else -1.0
        if is_cost(self.metric):
            tiny = 1e-30
            return max(0.0, sign * (math.log(max(value, tiny)) - math.log(max(self.value, tiny))))
        return max(0.0, sign * (value - self.value) / self.scale)


@dataclass(frozen=True)
class Goal:
    """The limits, and the cost that decides between candidates that meet them all."""

    limits: tuple[Limit, ...]
    objective: str = "latency"

    @property
    def metrics(self) -> list[str]:
        """Every metric a trial has to measure."""
        return list(dict.fromkeys([self.objective, *(x.metric for x in self.limits)]))

    def score(self, measured: Mapping[str, float]) -> float:
        """Lower is better; a metric that is missing counts as a miss of one unit."""
        miss = sum(x.miss(measured[x.metric]) if x.metric in measured else 1.0 for x in self.limits)
        cost = measured.get(self.objective)
        if cost is None:
            return MISS * (miss + 1)
        return MISS * miss + self._cost(cost)

    def met(self, measured: Mapping[str, float]) -> bool:
        """Whether every limit is met."""
        return all(x.metric in measured and x.miss(measured[x.metric]) == 0 for x in self.limits)

    def binding(self, measured: Mapping[str, float]) -> str | None:
        """The metric missed by most, None when all are met."""
        missed = {
            x.metric: x.miss(measured[x.metric]) if x.metric in measured else math.inf
            for x in self.limits
        }
        worst = max(missed, key=lambda m: missed[m], default=None)
        return worst if worst is not None and missed[worst] > 0 else None

    def expected(self, estimates: Mapping[str, Estimate], kappa: float) -> float:
        """What a candidate may be hoped to score: limits at their estimates, and a cost ``kappa``
        deviations better than its own.

        Cost is explored, quality is not gambled: with limits too at an optimistic end, a search
        began with the deepest cuts and learnt only that they fail.
        """
        return self.score(likely(estimates)) - kappa * estimates[self.objective].std

    def _cost(self, value: float) -> float:
        if not is_cost(self.objective):
            return -value
        log = math.log(max(value, 1e-30))
        return -log if self.objective == "throughput" else log


def likely(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Each metric at its estimate, in the metric's own unit."""
    return {m: math.exp(min(e.mean, 200.0)) if is_cost(m) else e.mean for m, e in estimates.items()}
