"""A cheap cost model learned from the logs of searches, instead of the simulator.

ArchGym (Krishnan et al. 2023, arXiv:2306.08888), section 6.2: a random forest on logged pairs of
action and cost; data of several agents together cover more of the space than as many of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paredown.errors import InputError
from paredown.search.gym.agents import unit
from paredown.search.gym.environment import Action, Environment

Log = Sequence[tuple[Action, dict[str, float], float]]


class Proxy:
    """A forest of ``trees`` on the logarithm of one metric; knobs enter as positions."""

    def __init__(self, env: Environment, metric: str, *, trees: int = 30, seed: int = 0) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.env, self.metric = env, metric
        self.forest: Any = ExtraTreesRegressor(trees, random_state=seed)

    def fit(self, log: Log) -> Proxy:
        """Learn from a log; designs seen twice count once."""
        once = {a: seen[self.metric] for a, seen, _ in log}
        if len(once) < 2:
            raise InputError(f"a proxy needs two designs at least, got {len(once)}")
        self.forest.fit(unit(self.env, list(once)), np.log(list(once.values())))
        return self

    def predict(self, actions: Sequence[Action]) -> np.ndarray:
        """The metric of each design."""
        return np.exp(self.forest.predict(unit(self.env, list(actions))))

    def error(self, log: Log) -> float:
        """Root mean square of the relative error on a log."""
        truth = np.array([seen[self.metric] for _, seen, _ in log])
        found = self.predict([a for a, _, _ in log])
        return float(np.sqrt((((found - truth) / truth) ** 2).mean()))
