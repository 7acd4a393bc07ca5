"""What a claim card is: a claim, thresholds fixed beforehand, an experiment, a rule to judge it.

CONTRACTS, Claim cards: a quick run may say "holds" or "fails" only where the effect exceeds the
smallest one it could see; otherwise the claim is "not testable here".
"""

from __future__ import annotations

import datetime
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from paredown.figure import Figure, measured
from paredown.result import CardVerdict, Finding, Fingerprint

Scale = Literal["quick", "full"]
Progress = Callable[[str], None]
Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Check:
    """One part of a claim: a value against a threshold, and the smallest effect that could be seen.

    ``op`` says on which side of ``threshold`` the claim lies; ``power`` is in the value's unit, 0
    for what is exact.
    """

    name: str
    value: float
    op: Literal[">=", "<="]
    threshold: float
    power: float = 0.0
    unit: str = ""

    @property
    def outcome(self) -> Outcome:
        """Holds or fails when the value is clear of the threshold by more than the power."""
        margin = self.value - self.threshold if self.op == ">=" else self.threshold - self.value
        if self.power == 0:
            return "holds" if margin >= 0 else "fails"
        if abs(margin) <= self.power:
            return "undecided"
        return "holds" if margin > 0 else "fails"

    def words(self) -> str:
        """The check in one clause."""
        seen = f" (could see {self.power:.3g})" if self.power else ""
        text = f"{self.name}: {self.value:.4g} {self.op} {self.threshold:.4g} {self.unit}".rstrip()
        return f"{text}{seen} {self.outcome}"


@dataclass
class Experiment:
    """What one run of a card found. ``tables`` are rows for the docs and plots."""

    measured: dict[str, Figure]
    checks: Sequence[Check]
    seeds: list[int]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    untestable: str | None = None
    """Why nothing could be decided on this machine at all."""


class Card(ABC):
    """One claim card. Subclasses fix ``thresholds`` in the class, before any run."""

    key: ClassVar[str]
    claim: ClassVar[str]
    thresholds: ClassVar[dict[str, float]]

    @abstractmethod
    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Run the scaled-down experiment: ``quick`` under 60 s on 2 cores."""

    def run(self, scale: Scale, progress: Progress, fingerprint: Fingerprint) -> Finding:
        """Run and judge; the first check with a power names the finding's."""
        start = time.monotonic()
        found = self.experiment(scale, progress)
        verdict, why = judge(found, scale)
        sharp = next((c for c in found.checks if c.power), None)
        power = (
            measured(sharp.power, sharp.unit or "1", n=len(found.seeds))
            if sharp
            else Figure(value=None, unit="1", how="unavailable", reason="every check is exact")
        )
        checks = [
            {
                "check": c.name,
                "value": c.value,
                "op": c.op,
                "threshold": c.threshold,
                "power": c.power,
                "unit": c.unit,
                "outcome": c.outcome,
            }
            for c in found.checks
        ]
        return Finding(
            key=self.key,
            verdict=verdict,
            why=why,
            claim=self.claim,
            measured=found.measured,
            thresholds=dict(self.thresholds),
            scale=scale,
            seeds=found.seeds,
            power=power,
            seconds=round(time.monotonic() - start, 2),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            fingerprint=fingerprint,
            tables={"checks": checks, **found.tables},
        )


def judge(found: Experiment, scale: Scale) -> tuple[CardVerdict, str]:
    """The verdict over all checks and the sentence that explains it."""
    if found.untestable:
        return "not testable here", found.untestable
    words = "; ".join(c.words() for c in found.checks)
    outcomes = {c.outcome for c in found.checks}
    if outcomes >= {"holds", "fails"}:
        # Whatever the undecided ones turn out to be, it stays so.
        return "partly", words
    if "undecided" in outcomes:
        need = "needs --scale full: " if scale == "quick" else "the effect is below what was seen: "
        return "not testable here", need + words
    return ("holds" if outcomes == {"holds"} else "fails"), words


def mean_and_power(values: Sequence[float]) -> tuple[float, float]:
    """Mean of repeats and the half-width of its 95 % interval (Student's t); needs two repeats."""
    from scipy import stats

    a = np.asarray(values, dtype=float)
    if len(a) < 2:
        raise ValueError("a mean needs at least two repeats to have a power")
    half = float(stats.t.ppf(0.975, len(a) - 1) * a.std(ddof=1) / math.sqrt(len(a)))
    return float(a.mean()), half


def mean_figure(values: Sequence[float], unit: str) -> Figure:
    """The mean of repeats with its 95 % interval."""
    mean, half = mean_and_power(values)
    return measured(mean, unit, spread=(mean - half, mean + half), n=len(values))


def half_width(figure: Figure) -> float:
    """The larger side of a figure's interval: the power of a check on it."""
    value = figure.known()
    low, high = figure.spread or (value, value)
    return max(high - value, value - low)
