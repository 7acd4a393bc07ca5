"""One constraint of a budget: the table of metrics, and whether a figure meets what was asked.

The definitions are CONTRACTS, "Metrics and constraints". No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paredown.errors import BudgetError
from paredown.figure import Figure, How, unavailable
from paredown.result import ConstraintResult

Op = Literal["<=", ">="]


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    ``better`` is the only direction a constraint on it may take; ``relative_to`` what ``x`` (and,
    for costs, ``%``) refers to, None where neither is a ratio; ``parts`` what may follow a dot;
    ``how`` the ways of knowing that can be had for it, best first.
    """

    name: str
    unit: str
    better: Op
    relative_to: str | None
    how: str
    parts: tuple[str, ...] = ()
    quality: bool = False


LOOP_PARTS = ("first", "per_token")
"""Parts of the latency of a loop: its first step, and each later one."""

_QUANTILES = ("p50", "p90", "p95", "p99")

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("latency", "s", "<=", "baseline", "measured", (*LOOP_PARTS, *_QUANTILES)),
        Metric("throughput", "runs/s", ">=", "baseline", "measured"),
        Metric("memory", "B", "<=", "baseline", "measured"),
        Metric("size", "B", "<=", "baseline", "counted"),
        Metric("energy", "J", "<=", "baseline", "measured, else predicted"),
        Metric("traffic", "B", "<=", "baseline", "measured, else predicted"),
        Metric("macs", "MAC", "<=", "target", "counted"),
        Metric("params", "1", "<=", "target", "counted"),
        Metric("score", "score", ">=", "original", "measured", quality=True),
        Metric("drop", "score", "<=", None, "measured", quality=True),
        Metric("fidelity", "1", ">=", None, "measured", quality=True),
    )
}
"""Every metric a constraint may name."""

_COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "B": {
        "B": 1.0,
        "KB": 1e3,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2.0**10,
        "MiB": 2.0**20,
        "GiB": 2.0**30,
    },
    "J": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "runs/s": {"runs/s": 1.0, "/s": 1.0, "tokens/s": 1.0},
    "MAC": _COUNTS,
    "1": _COUNTS,
    "score": {"": 1.0},
}
"""SI base unit -> how it may be written, and the factor to the base unit."""


@dataclass(frozen=True)
class Constraint:
    """One parsed constraint.

    ``value`` is in ``unit``: an SI base unit, ``x`` (a ratio to ``relative_to``) or ``%`` (of the
    score's scale, until ``Budget.check_workload`` resolves it).
    """

    metric: str
    op: Op
    value: float
    unit: str
    relative_to: str | None
    text: str
    implied: bool = False
    """True for the quality gate that was added because the user named none."""

    @property
    def kind(self) -> Metric:
        """The row of the table that the metric belongs to."""
        return METRICS[self.metric.partition(".")[0]]

    @property
    def part(self) -> str:
        """What follows the dot: ``p95``, ``first`` ... or nothing."""
        return self.metric.partition(".")[2]

    def pick(self, figures: Mapping[str, Figure]) -> Figure:
        """Find the figure this constraint is about: by full name, or as a quantile."""
        if self.metric in figures:
            return figures[self.metric]
        whole = figures.get(self.kind.name)
        if whole is None:
            return unavailable(self.kind.unit, f"{self.metric} was not measured")
        if not self.part or whole.how == "unavailable":
            return whole
        value = (whole.quantiles or {}).get(self.part)
        if value is None:
            only = f"{self.metric} was not measured, only {self.kind.name}"
            only += f": {whole.reason}" if whole.reason else ""
            return unavailable(self.kind.unit, only)
        return Figure(value=value, unit=whole.unit, how=whole.how, n=whole.n)

    def judge(
        self,
        achieved: Figure,
        baseline: Figure | None = None,
        *,
        interval: tuple[float, float] | None = None,
        accept_predicted: bool = False,
    ) -> ConstraintResult:
        """Whether a figure meets this constraint.

        ``achieved`` is in the metric's unit, or already a ratio (unit ``x``, the median of paired
        ratios), which is preferred. ``interval`` replaces its spread. Met by the point estimate;
        ``proven`` when the unfavourable end of the interval meets it too (None: no interval).
        """
        if self.unit == "%":
            raise BudgetError(f"{self.text!r} needs the score's scale: check_workload resolves it")
        figure = self._comparable(achieved, baseline)
        if interval is not None and figure.value is not None:
            figure = figure.model_copy(update={"spread": interval})
        met, proven, why = False, None, None
        if figure.value is None:
            why = figure.reason
        elif figure.how == "nominal" or (figure.how == "predicted" and not accept_predicted):
            why = f"the figure is {figure.how}; only a measured one decides"
            why += " (--accept predicted allows it)" if figure.how == "predicted" else ""
        else:
            met = self._holds(figure.value)
            if figure.spread is not None:
                proven = self._holds(figure.spread[1] if self.op == "<=" else figure.spread[0])
            elif figure.how == "counted":
                proven = met
        return ConstraintResult(
            metric=self.metric,
            op=self.op,
            value=self.value,
            unit=self.unit,
            relative_to=self.relative_to,
            text=self.text,
            achieved=figure,
            met=met,
            proven=proven,
            why=why,
        )

    def _holds(self, value: float) -> bool:
        # A relative slack of 1e-9 keeps 0.3 * 10 <= 3 true in binary floating point.
        slack = 1e-9 * max(abs(value), abs(self.value))
        return value <= self.value + slack if self.op == "<=" else value >= self.value - slack

    def _comparable(self, achieved: Figure, baseline: Figure | None) -> Figure:
        """The achieved figure in this constraint's own unit: a ratio when it asks for one."""
        if achieved.value is None:
            return achieved
        if self.unit != "x":
            if achieved.unit == "x":
                return unavailable(self.unit, f"{self.metric} is known only as a ratio")
            return achieved
        if achieved.unit == "x":
            return achieved
        if baseline is None or baseline.value is None:
            why = baseline.reason if baseline is not None else "it was not measured"
            return unavailable("x", f"no {self.relative_to} {self.kind.name}: {why}")
        if baseline.value <= 0:
            why = f"the {self.relative_to}'s {self.kind.name} is {baseline.value:g}"
            return unavailable("x", why)
        return quotient(achieved, baseline)


def quotient(ours: Figure, base: Figure) -> Figure:
    """One figure relative to another (unit ``x``), known as well as the weaker of the two.

    The interval is that of ``ours`` alone. Raises ``ValueError`` for an unavailable figure or a
    base that is not positive.
    """
    value, over = ours.known(), base.known()
    if over <= 0:
        raise ValueError(f"no ratio to {over:g} {base.unit}")
    weakest = _WEAKNESS[max(map(_WEAKNESS.index, (ours.how, base.how)))]
    low, high = ours.spread or (0.0, 0.0)
    spread = (low / over, high / over) if ours.spread is not None else None
    return Figure(value=value / over, unit="x", how=weakest, spread=spread, n=ours.n)


_WEAKNESS: tuple[How, ...] = ("counted", "measured", "nominal", "predicted", "unavailable")
