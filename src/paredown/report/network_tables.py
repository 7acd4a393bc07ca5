"""Rows for the tables of a network: operators, modules, layers; capped where long, sums kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paredown.report import plots
from paredown.report.tables import MOST_ROWS, Capped, cap
from paredown.result import ModuleRow, OperatorRow


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


def _time(rows: Sequence[OperatorRow]) -> float:
    return sum(plots.seconds_of(r) or 0.0 for r in rows)


def _module_time(row: ModuleRow, measured: bool) -> float:
    return (row.measured_s if measured else row.predicted_s) or 0.0


def _shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum(r["seconds"] for r in rows) or 1.0
    for row in rows:
        row["share"] = row["seconds"] / total
    return sorted(rows, key=lambda r: -r["seconds"])
