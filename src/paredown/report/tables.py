"""Rows for the tables of a result: budget, sides, sites, candidates; long ones are capped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paredown.report import plots, units, words
from paredown.result import (
    CompareDoc,
    ConstraintResult,
    DownDoc,
    Side,
    SiteReport,
    Trial,
)

T = TypeVar("T")
MOST_ROWS = 200


@dataclass(frozen=True)
class Capped(Generic[T]):
    """The rows shown, how many there are in all, and a note where some are left out."""

    rows: list[T]
    total: int
    note: str = ""

    @property
    def left(self) -> int:
        """How many rows are not shown."""
        return self.total - len(self.rows)


def cap(rows: Sequence[T], what: str, most: int = MOST_ROWS, order: str = "first") -> Capped[T]:
    """The ``first`` rows, with a note saying how many more the JSON document holds."""
    shown = list(rows[:most])
    note = (
        f"The {len(shown)} {order} of {len(rows):,} {what}; the JSON document holds all."
        if len(rows) > most
        else ""
    )
    return Capped(shown, len(rows), note)


def budget(results: Sequence[ConstraintResult]) -> list[dict[str, Any]]:
    """One row per constraint: asked, achieved in the unit asked for, met, proven."""
    factor = units.percent_factor(results)
    out: list[dict[str, Any]] = []
    for r in results:
        achieved = r.achieved
        if factor and r.text.rstrip().endswith("%") and r.unit == "score":
            achieved = units.in_percent(achieved, factor)
        if achieved.unit == "x" and achieved.value is not None and r.text.rstrip().endswith("%"):
            achieved = units.in_percent(achieved, 100.0)
        proven = "proven" if r.proven else "not proven" if r.proven is False else "no interval"
        out.append(
            {
                "metric": units.title(r.metric),
                "text": r.text,
                "achieved": achieved,
                "met": r.met,
                "proven": proven if r.met else "",
                "why": r.why or "",
                "of": f"of the {r.relative_to}" if r.relative_to else "",
            }
        )
    return out


ORDER = (
    "latency",
    "throughput",
    "memory",
    "size",
    "energy",
    "traffic",
    "macs",
    "params",
    "score",
    "drop",
    "fidelity",
)


def metrics(sides_: Sequence[Side]) -> list[str]:
    """Every metric that some side has, in the usual order."""
    found = dict.fromkeys(m for s in sides_ for m in s.figures)
    rank = {m: i for i, m in enumerate(ORDER)}
    return sorted(found, key=lambda m: (rank.get(m.partition(".")[0], len(rank)), m))


def sides(doc: DownDoc) -> list[dict[str, Any]]:
    """One row per metric: the figures of before, best single backend and after, and the ratios."""
    each = [doc.before, doc.best_single_backend, doc.after]
    factor = units.percent_factor(doc.constraints)
    rows: list[dict[str, Any]] = []
    for metric in metrics([s for s in each if s]):
        cells = [s.figures.get(metric) if s else None for s in each]
        if metric == "drop" and factor:
            cells = [units.in_percent(c, factor) if c else None for c in cells]
        rows.append(
            {
                "metric": metric,
                "title": units.title(metric),
                "cells": cells,
                "ratio": doc.after.ratios.get(metric),
                "versus": words.versus(doc, metric),
            }
        )
    return rows


def sites(rows: Sequence[SiteReport]) -> Capped[SiteReport]:
    """What happened at each site, those whose saving is not real first."""
    rank = {"simulated": 0, "refused": 1, "real": 2}
    return cap(sorted(rows, key=lambda s: rank[s.outcome]), "sites")


def race(doc: DownDoc) -> list[dict[str, Any]]:
    """Latency of the three sides as bars, the share of the slowest each."""
    each = [
        (doc.before, "before", "as its author runs it"),
        (doc.best_single_backend, "single", "best single backend"),
        (doc.after, "after", "pared"),
    ]
    rows: list[dict[str, Any]] = []
    for side, cls, what in each:
        latency = side.figures.get("latency") if side is not None else None
        if side is not None and latency is not None and latency.value is not None:
            rows.append({"name": side.name, "what": what, "cls": cls, "figure": latency})
    slowest = max((r["figure"].known() for r in rows), default=0.0) or 1.0
    for row in rows:
        row["bar"] = row["figure"].known() / slowest
    return rows


def nets(doc: DownDoc) -> list[plots.Net]:
    """The original and the pared network for the gap plot."""
    out: list[plots.Net] = []
    for side, rows, cls, shape, name in (
        (doc.before, doc.operators_before, "before", "s", "original"),
        (doc.after, doc.operators_after, "after", "o", "pared"),
    ):
        actual, score = side.figures.get("latency"), side.figures.get("score")
        if actual is not None and actual.value is not None and rows:
            out.append(
                plots.Net(
                    name, cls, shape, actual, plots.ideal(rows), score.value if score else None
                )
            )
    return out


def residuals(pairs: Sequence[tuple[str, float, float]]) -> Capped[dict[str, Any]]:
    """Predicted, measured and their relative difference, the largest first."""
    known = sorted((x for x in pairs if x[2] > 0), key=lambda x: -abs(x[1] / x[2] - 1))
    rows: list[dict[str, Any]] = [
        {"label": label, "predicted": p, "measured": m, "off": p / m - 1} for label, p, m in known
    ]
    return cap(rows, "candidates", most=15, order="worst predicted")


def trials(rows: Sequence[Trial]) -> Capped[Trial]:
    """Measured candidates by latency, then the failed, then the skipped."""
    rank = {"done": 0, "failed": 1, "skipped": 2}

    def order(t: Trial) -> tuple[int, float, int]:
        latency = t.measured.get("latency", t.predicted.get("latency"))
        return rank[t.state], latency.value if latency and latency.value is not None else 1e9, t.id

    return cap(sorted(rows, key=order), "candidates", order="fastest")


def compare(doc: CompareDoc) -> list[dict[str, Any]]:
    """One row per metric: each side's figure and its ratio to the first side."""
    return [
        {
            "metric": m,
            "title": units.title(m),
            "cells": [{"figure": s.figures.get(m), "ratio": s.ratios.get(m)} for s in doc.sides],
        }
        for m in metrics(doc.sides)
    ]
