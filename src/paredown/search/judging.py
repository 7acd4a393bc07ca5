"""What a network's outputs are worth: on the examples that guide a search, or on those that decide.

`evaluate` guides and `verify` decides; without `verify` a part of `evaluate`'s examples guides and
the rest decides (CONTRACTS, Quality).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from paredown import quality

if TYPE_CHECKING:
    from paredown.figure import Figure
    from paredown.workload import Workload

FIDELITY_INPUTS = 32
Scores = float | np.ndarray


@dataclass(frozen=True)
class Examples:
    """Which examples judge: those that guide the search, or with ``deciding`` the others.

    ``split`` are indices of `evaluate`'s examples, used where there is no `verify`; None: all.
    """

    split: np.ndarray | None = None
    deciding: bool = False
    seed: int = 0

    def scores(self, original: Workload, model: nn.Module) -> Scores | None:
        """Scores of a model with the original's signature; None where no judge was given."""
        verified = self.deciding and original.verify is not None
        judge = original.verify if verified else original.evaluate
        if judge is None:
            return None
        found = quality.judge(judge, model, who="verify" if verified else "evaluate")
        if verified or self.split is None or not isinstance(found, np.ndarray):
            return found
        return found[self.split]

    def judge(
        self, original: Workload, model: nn.Module, before: Scores | None
    ) -> dict[str, Figure]:
        """``fidelity``, and with a judge ``score`` and ``drop``, of a pared network's facade.

        ``before`` are the original's own scores on the same examples, from `scores`.
        """
        calls = list(original.calibration_inputs())[:FIDELITY_INPUTS]
        figures = {"fidelity": quality.compare(original.model, model, calls, loop=original.loop)}
        after = None if before is None else self.scores(original, model)
        if before is not None and after is not None:
            figures["score"] = quality.score(after, seed=self.seed)
            figures["drop"] = quality.drop(before, after, seed=self.seed)
        return figures

    def score(self, scores: Scores | None) -> dict[str, Figure]:
        """``score`` where there are scores, else nothing."""
        return {} if scores is None else {"score": quality.score(scores, seed=self.seed)}
