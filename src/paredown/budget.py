"""Budgets: constraints on measured figures, what each metric and unit means, and the verdict.

The definitions are CONTRACTS, "Metrics and constraints" and "Verdicts". No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from paredown.errors import BudgetError
from paredown.figure import Figure, How, unavailable
from paredown.result import ConstraintResult, Verdict

if TYPE_CHECKING:
    from paredown.workload import Workload

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

_FORM = re.compile(
    r"""^\s*(?P<metric>[A-Za-z_][\w.]*)\s*
        (?P<op><=|>=|==|=|<|>|!=)\s*
        (?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*
        (?P<unit>[^\s\d].*?)?\s*$""",
    re.VERBOSE,
)
_SPELLING = str.maketrans({"≤": "<=", "≥": ">=", "\u00d7": "x", "\u00b5": "u", "\u03bc": "u"})


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
    constraints = tuple(_parse(t) for t in texts)
    _agree(constraints)
    for c in constraints:
        if c.op != c.kind.better:
            raise BudgetError(
                f"{c.text!r}: {c.kind.name} is budgeted from the other side, "
                f"write {c.metric} {c.kind.better} ..."
            )
    return Budget(constraints)


def _parse(text: str) -> Constraint:
    if "\n" in text:
        raise BudgetError(f"malformed constraint {text!r}: write METRIC <= VALUE")
    m = _FORM.match(text.translate(_SPELLING))
    if m is None:
        raise BudgetError(
            f"malformed constraint {text!r}: write METRIC <= VALUE, "
            "for instance 'latency <= 5 ms' or 'size <= 0.3x'"
        )
    metric, op, unit = m["metric"], m["op"], (m["unit"] or "").strip()
    kind = _metric(metric, text)
    if op not in ("<=", ">="):
        raise BudgetError(f"{text!r}: {op!r} is not a comparison here, use <= or >=")
    value = float(m["value"])
    if not math.isfinite(value):
        raise BudgetError(f"{text!r}: the value is not finite")
    if value < 0 or m["value"].startswith("-"):
        raise BudgetError(f"{text!r}: the value is negative")
    if value == 0 and kind.name != "drop":
        raise BudgetError(f"{text!r}: the value must be above zero")
    value, unit, relative_to = _unit(kind, value, unit, text)
    if kind.name == "fidelity" and value > 1:
        raise BudgetError(f"{text!r}: fidelity is at most 1 (100%)")
    return Constraint(metric, op, value, unit, relative_to, " ".join(text.split()))


def _metric(metric: str, text: str) -> Metric:
    name, _, part = metric.partition(".")
    if name not in METRICS:
        near = get_close_matches(name.lower(), METRICS, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(METRICS)}"
        raise BudgetError(f"unknown metric {name!r} in {text!r}: {hint}")
    kind = METRICS[name]
    if part not in kind.parts and "." in metric:
        known = ", ".join(f"{name}.{p}" for p in kind.parts) or f"only {name} itself"
        raise BudgetError(f"unknown metric {metric!r} in {text!r}: there is {known}")
    return kind


def _unit(kind: Metric, value: float, unit: str, text: str) -> tuple[float, str, str | None]:
    if unit == "x":
        if kind.relative_to is None:
            raise BudgetError(f"{text!r}: {kind.name} is not a ratio, use % or an absolute value")
        return value, "x", kind.relative_to
    if unit == "%":
        if kind.name == "fidelity":
            return value / 100, "1", None
        return (value, "%", None) if kind.quality else (value / 100, "x", kind.relative_to)
    known = UNITS[kind.unit]
    if kind.name == "fidelity":
        known = {"": 1.0}
    if unit not in known:
        forms = [u for u in known if u] + (["x"] if kind.relative_to else []) + ["%"]
        what = f"unit {unit!r} does not fit {kind.name}" if unit else f"{kind.name} needs a unit"
        raise BudgetError(f"{text!r}: {what}, use one of {', '.join(forms)}")
    return value * known[unit], kind.unit, None


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
