"""Predicted cost and quality of a candidate: a first estimate, corrected by what was measured.

The first estimate of a cost is the priced graph's (the product of what each technique alone
changes); the correction is a Bayesian linear regression of the log residual on the candidate's
labels, so that one measured candidate already teaches something about its neighbours. Quality loss
is additive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paredown.search.space import BACKEND, OFF, Axis, Candidate

Prior = Callable[[Candidate, str], float]
Observe = Callable[[Candidate, dict[str, float]], None]
"""Told of each measured candidate, so that the prior itself may learn."""


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation: of the log for costs, of the value itself for losses."""

    mean: float
    std: float


class Features:
    """Labels of a candidate as 0/1 columns: every label, and every label together with the
    backend.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        singles = [(a.name, o) for a in axes for o in a.options if o != OFF]
        backends = [o for a in axes if a.name == BACKEND for o in a.options]
        pairs = [(s, b) for s in singles if s[0] != BACKEND for b in backends]
        self._singles = {s: i + 1 for i, s in enumerate(singles)}
        self._pairs = {p: i + 1 + len(singles) for i, p in enumerate(pairs)}
        self.width = 1 + len(singles) + len(pairs)

    def row(self, candidate: Candidate) -> NDArray[np.float64]:
        """One row: bias, labels, label x backend."""
        x = np.zeros(self.width)
        x[0] = 1.0
        for s in candidate.point:
            if s in self._singles:
                x[self._singles[s]] = 1.0
            pair = (s, candidate.backend)
            if pair in self._pairs:
                x[self._pairs[pair]] = 1.0
        return x


@dataclass
class Regression:
    """Bayesian linear regression with prior N(0, scale^2) on weights and noise of std ``noise``."""

    width: int
    scale: float
    noise: float
    rows: list[NDArray[np.float64]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: NDArray[np.float64], value: float) -> None:
        """One observation."""
        self.rows.append(row)
        self.values.append(value)

    def predict(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Posterior mean and standard deviation (noise left out) at each row.

        Solved in the space of observations (few) rather than of weights (many).
        """
        prior = self.scale**2 * np.einsum("ij,ij->i", rows, rows)
        if not self.rows:
            return np.zeros(len(rows)), np.sqrt(prior)
        x = np.stack(self.rows)
        gram = self.scale**2 * (x @ x.T) + self.noise**2 * np.eye(len(x))
        cross = self.scale**2 * (rows @ x.T)
        mean = cross @ np.linalg.solve(gram, np.asarray(self.values))
        reduce = np.einsum("ij,ij->i", cross, np.linalg.solve(gram, cross.T).T)
        return mean, np.sqrt(np.maximum(prior - reduce, 0.0))


COSTS = ("latency", "throughput", "memory", "size", "energy", "traffic", "macs", "params")
COST, LOSS = (0.4, 0.03), (0.03, 0.005)
"""Scale of the corrections and noise: of logs for costs, of the value itself for losses."""


class Predictor:
    """Estimates of every metric for every candidate, better with each measurement."""

    def __init__(
        self,
        axes: Sequence[Axis],
        prior: Prior,
        metrics: Sequence[str],
        observe: Observe = lambda _c, _v: None,
    ) -> None:
        self.features = Features(axes)
        self._prior = prior
        self._observe = observe
        self._metrics = list(metrics)
        self._measured: list[tuple[Candidate, dict[str, float]]] = []

    def learn(self, candidate: Candidate, measured: dict[str, float]) -> None:
        """Take in one measured candidate."""
        self._observe(candidate, measured)
        self._measured.append((candidate, measured))

    def estimate(self, candidates: Sequence[Candidate], metric: str) -> list[Estimate]:
        """One estimate per candidate; cost means are logs."""
        rows = np.stack([self.features.row(c) for c in candidates])
        mean, std = self._residuals(metric).predict(rows)
        base = np.array([self._prior(c, metric) for c in candidates])
        if is_cost(metric):
            base = np.log(np.maximum(base, 1e-30))
        return [Estimate(float(b + m), float(s)) for b, m, s in zip(base, mean, std, strict=True)]

    def _residuals(self, metric: str) -> Regression:
        """What was measured, against the prior as it stands now: it has learnt meanwhile."""
        model = Regression(self.features.width, *(COST if is_cost(metric) else LOSS))
        for candidate, measured in self._measured:
            if metric in measured and metric in self._metrics:
                base = self._prior(candidate, metric)
                model.add(self.features.row(candidate), _residual(metric, measured[metric], base))
        return model


def is_cost(metric: str) -> bool:
    """Whether a metric is positive and multiplicative (its logarithm is modelled)."""
    return metric.partition(".")[0] in COSTS


def _residual(metric: str, value: float, prior: float) -> float:
    if is_cost(metric):
        return float(np.log(max(value, 1e-30)) - np.log(max(prior, 1e-30)))
    return value - prior
