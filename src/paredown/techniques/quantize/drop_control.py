"""As many sites quantized as an allowed drop of the score bears; the most sensitive stay in float.

Sites are ranked by `sensitivity`, each alone. All are quantized and judged; where that loses too
much, the fewest of the most sensitive sites that mend it go back to float, found by doubling and
halving their number, so that a network of n sites is judged about 2 log2(n) times. (NNCF's accuracy
control goes back one operator at a time and judges each; so does the partial quantization of Wu et
al. 2020, arXiv:2004.09602.)
Limits: the score need not fall site by site, so fewer sites may do than are found; what is returned
was judged itself and keeps the drop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paredown.errors import InputError, NotApplicable
from paredown.figure import Figure
from paredown.graph.capture import capture
from paredown.quality import drop, judge
from paredown.technique import Change, Sites, Technique
from paredown.techniques.quantize.sensitivity import sensitivity
from paredown.workload import Workload


@dataclass(frozen=True)
class Kept:
    """The change found, the sites left in float (most sensitive first), and the drop it has."""

    change: Change
    left: tuple[str, ...]
    drop: Figure


def within_drop(
    workload: Workload,
    technique: Technique,
    allowed: float,
    *,
    before: float | np.ndarray | None = None,
    items: int = 8,
) -> Kept:
    """``technique`` at all sites but those that must stay for a drop of at most ``allowed``.

    ``before`` are the scores that the drop is taken from (the workload's own without it, by
    `evaluate`). Raises ``InputError`` without `evaluate` or for a negative drop, ``NotApplicable``
    where the technique has no site, or where even one quantized site loses more.
    """
    if workload.evaluate is None:
        raise InputError("a drop is judged by `evaluate`, which the workload lacks")
    if not allowed >= 0:
        raise InputError(f"the allowed drop must be at least 0, got {allowed}")
    evaluate = workload.evaluate
    if before is None:
        before = judge(evaluate, workload.model)
    sites = technique.sites(workload, capture(workload))
    if not sites.ok:
        raise NotApplicable(f"{technique.name} has no site on {workload.name}")

    def tried(left: tuple[str, ...]) -> Kept:
        ok = tuple(s for s in sites.ok if s not in left)
        change = technique.apply(workload, Sites(ok, sites.refused, sites.overrides))
        return Kept(change, left, drop(before, judge(evaluate, change.workload.model)))

    found = tried(())
    if _keeps(found, allowed):
        return found
    losses = sensitivity(workload, technique, sites, items=items)
    ranked = sorted(losses, key=lambda s: losses[s], reverse=True)
    most = len(ranked) - 1
    # `low` sites in float lose too much, `high` keep the drop.
    low, high = 0, 1
    while high <= most and not _keeps(found := tried(tuple(ranked[:high])), allowed):
        low, high = high, max(high + 1, min(2 * high, most))
    if high > most:
        raise NotApplicable(
            f"{technique.name} loses more than {allowed} on {workload.name} even at one site"
        )
    while high - low > 1:
        middle = (low + high) // 2
        now = tried(tuple(ranked[:middle]))
        low, high = (low, middle) if _keeps(now, allowed) else (middle, high)
        found = now if high == middle else found
    return found


def _keeps(found: Kept, allowed: float) -> bool:
    value = found.drop.value
    return value is not None and value <= allowed
