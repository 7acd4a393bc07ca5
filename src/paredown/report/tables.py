"""Rows for the tables of pages and terminal: capped where long, sums kept, nothing rounded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from paredown.report import plots, units, words
from paredown.result import (
    CompareDoc,
    ConstraintResult,
    DownDoc,
    ModuleRow,
    OperatorRow,
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


@dataclass(frozen=True)
class OperatorTable:
    """Operators by time, the sums of those shown, of the rest and of all."""

    top: Capped[OperatorRow]
    shown: dict[str, float]
    rest: dict[str, float]
    all: dict[str, float]


def operators(rows: Sequence[OperatorRow], most: int = MOST_ROWS) -> OperatorTable:
    """The operators that take longest, and what the others sum to."""
    ordered = sorted(rows, key=lambda r: (-(plots.seconds_of(r) or 0.0), r.index))
    top = cap(ordered, "operators", most, "slowest")
    return OperatorTable(top, sums(top.rows), sums(ordered[most:]), sums(ordered))


def sums(rows: Sequence[OperatorRow]) -> dict[str, float]:
    """Totals over operators: MACs, bytes, seconds of each kind, and how many have none."""
    return {
        "count": len(rows),
        "macs": sum(r.macs or 0 for r in rows),
        "bytes": sum(r.bytes_read + r.bytes_written for r in rows),
        "ideal": sum(r.ideal_s or 0.0 for r in rows),
        "predicted": sum(r.predicted_s.value or 0.0 for r in rows),
        "measured": sum(r.measured_s.value or 0.0 for r in rows),
        "unpriced": sum(r.predicted_s.value is None for r in rows),
        "untimed": sum(r.measured_s.value is None for r in rows),
    }


def by_kind(rows: Sequence[OperatorRow]) -> list[dict[str, Any]]:
    """Sums per operator name, the slowest first, each with its share of the time."""
    kinds: dict[str, list[OperatorRow]] = {}
    for row in rows:
        kinds.setdefault(row.op, []).append(row)
    return _shares([{"name": op, "seconds": _time(rs), **sums(rs)} for op, rs in kinds.items()])


def by_bound(rows: Sequence[OperatorRow]) -> list[dict[str, Any]]:
    """Sums per bound (compute, memory, overhead), each with its share of the time."""
    found: dict[str, list[OperatorRow]] = {}
    for row in rows:
        found.setdefault(row.bound, []).append(row)
    return _shares(
        [{"name": bound, "seconds": _time(rs), **sums(rs)} for bound, rs in found.items()]
    )


def modules(rows: Sequence[ModuleRow], most: int = MOST_ROWS) -> Capped[dict[str, Any]]:
    """Modules in order with their depth and the share of the longest, for bars."""
    timed = all(r.measured_s is not None for r in rows)
    longest = max((_module_time(r, timed) for r in rows), default=0.0) or 1.0
    shown: list[dict[str, Any]] = [
        {
            "row": r,
            "depth": min(r.path.count(".") + (r.path != ""), 6),
            "bar": _module_time(r, timed) / longest,
        }
        for r in rows
    ]
    if len(shown) <= most:
        return cap(shown, "modules", most)
    shallow = sorted(shown, key=lambda m: (m["depth"], -m["bar"]))[:most]
    kept = {id(m) for m in shallow}
    note = f"{most} of {len(rows):,} modules, outermost first; the JSON document holds all."
    return Capped([m for m in shown if id(m) in kept], len(rows), note)


def layers(
    before: Sequence[ModuleRow], after: Sequence[ModuleRow], most: int = MOST_ROWS
) -> Capped[dict[str, Any]]:
    """Modules before and after, side by side by path; one that is gone or new has an empty side."""
    then, now = {r.path: r for r in before}, {r.path: r for r in after}
    paths = [*then, *(p for p in now if p not in then)]
    # Measured against predicted would be no comparison: both sides are read the same way.
    timed = all(r.measured_s is not None for r in [*before, *after])
    longest = max((_module_time(r, timed) for r in [*before, *after]), default=0.0) or 1.0
    rows: list[dict[str, Any]] = []
    for path in paths:
        b, a = then.get(path), now.get(path)
        rows.append(
            {
                "path": path,
                "cls": a.cls if a else b.cls if b else "",
                "before": b,
                "after": a,
                "depth": min(path.count(".") + (path != ""), 6),
                "how": "measured" if timed else "predicted",
                "time_before": _module_time(b, timed) if b else None,
                "time_after": _module_time(a, timed) if a else None,
                "bar_before": _module_time(b, timed) / longest if b else 0.0,
                "bar_after": _module_time(a, timed) / longest if a else 0.0,
                "ratio": _module_time(a, timed) / _module_time(b, timed)
                if a and b and _module_time(b, timed)
                else None,
            }
        )
    if len(rows) <= most:
        return cap(rows, "modules", most)
    kept = {r["path"] for r in sorted(rows, key=lambda r: (r["depth"], -r["bar_before"]))[:most]}
    note = f"{most} of {len(rows):,} modules, outermost first; the JSON document holds all."
    return Capped([r for r in rows if r["path"] in kept], len(rows), note)


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


def efficiency(
    nets_: Sequence[plots.Net], levels: Sequence[dict[str, float]]
) -> list[dict[str, Any]]:
    """Ideal and actual latency, gap, efficiency and its upper bound for each network."""
    return [
        {
            "name": n.name,
            "ideal": n.ideal,
            "actual": n.actual,
            "gap": n.actual.known() - n.ideal,
            "efficiency": n.ideal / n.actual.known(),
            "e_max": level.get("e_max"),
        }
        for n, level in zip(nets_, levels, strict=False)
        if n.actual.value and n.ideal > 0
    ]


def residuals(pairs: Sequence[tuple[str, float, float]]) -> Capped[dict[str, Any]]:
    """Predicted, measured and their relative difference, the largest first."""
    rows = [
        {"label": label, "predicted": p, "measured": m, "off": p / m - 1}
        for label, p, m in pairs
        if m > 0
    ]
    return cap(sorted(rows, key=lambda r: -abs(r["off"])), "candidates", order="worst predicted")


def trials(rows: Sequence[Trial]) -> Capped[Trial]:
    """Measured candidates by latency, then the failed, then the skipped."""
    rank = {"done": 0, "failed": 1, "skipped": 2}

    def order(t: Trial) -> tuple[int, float, int]:
        latency = t.measured.get("latency")
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


def _time(rows: Sequence[OperatorRow]) -> float:
    return sum(plots.seconds_of(r) or 0.0 for r in rows)


def _module_time(row: ModuleRow, measured: bool) -> float:
    return (row.measured_s if measured else row.predicted_s) or 0.0


def _shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum(r["seconds"] for r in rows) or 1.0
    for row in rows:
        row["share"] = row["seconds"] / total
    return sorted(rows, key=lambda r: -r["seconds"])
