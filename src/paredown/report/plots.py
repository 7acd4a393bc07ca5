"""The figures of a network: waterline, efficiency gap, memory over the run.

Waterline and gap follow "On the Efficiency of Convolutional Neural Networks" (2024; catalogue key
``convfirst``): the op:byte ratio of each kernel against the water level ``R_peak / bandwidth``, and
the latency of a network against its ideal ``t* = operations / R_peak``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paredown.figure import Figure
from paredown.report import units
from paredown.report.svg import Plot, span
from paredown.result import MemoryPoint, OperatorRow

WIDEST = 240
"""At most this many bars or points in one figure; neighbours are joined, sums kept."""


@dataclass
class Bar:
    """One or several neighbouring operators: work, bytes, time and what binds the longest."""

    name: str
    macs: int
    moved: int
    seconds: float
    bound: str
    count: int = 1

    @property
    def intensity(self) -> float:
        """Multiply-accumulates per byte; 0 where nothing is multiplied or moved."""
        return self.macs / self.moved if self.moved else 0.0


def seconds_of(row: OperatorRow) -> float | None:
    """An operator's time: measured where there is one, else predicted, else None."""
    return row.measured_s.value if row.measured_s.value is not None else row.predicted_s.value


def bars(rows: Sequence[OperatorRow], most: int = WIDEST) -> list[Bar]:
    """Operators in execution order, neighbours of a long run joined into at most ``most`` bars."""
    timed = [(r, seconds_of(r)) for r in rows]
    total = sum(s or 0.0 for _, s in timed)
    out: list[Bar] = []
    filled = 0.0
    for row, seconds in timed:
        took = seconds or 0.0
        moved = row.bytes_read + row.bytes_written
        slot = int(filled / total * most) if total and len(rows) > most else len(out)
        name = f"{row.module or '(root)'} {row.op.rpartition('::')[2]}"
        if out and slot < len(out):
            last = out[-1]
            bound = row.bound if took > last.seconds else last.bound
            out[-1] = Bar(
                last.name,
                last.macs + (row.macs or 0),
                last.moved + moved,
                last.seconds + took,
                bound,
                last.count + 1,
            )
        else:
            out.append(Bar(name, row.macs or 0, moved, took, row.bound))
        filled += took
    return out


def waterline(
    name: str, rows: Sequence[OperatorRow], level: dict[str, float], whose: str
) -> str | None:
    """Per-operator op:byte ratios in order, each as wide as its time, against the water level."""
    water = level.get("intensity")
    drawn = bars(rows)
    if not drawn or not water or water <= 0:
        return None
    seen = [b.intensity for b in drawn if b.intensity > 0]
    low, high = span([*seen, water], log=True)
    total = sum(b.seconds for b in drawn) or float(len(drawn))
    under = sum(b.seconds for b in drawn if b.intensity < water) / total
    plot = Plot(
        name,
        f"Waterline of {whose}",
        f"Multiply-accumulates per byte of {len(rows)} operators in order, bars as wide as their "
        f"time. The water level is {units.digits(water)} MAC/B; "
        f"{under:.0%} of the time is under it.",
        (0.0, total),
        (low, high),
        "time, operators in order",
        "MAC per byte",
        units.tick_seconds,
        units.tick_digits,
        log_y=True,
    )
    plot.rect(0, total, low, water, "water")
    at = 0.0
    for bar in drawn:
        wide = bar.seconds if total else 1.0
        joined = f" and {bar.count - 1} more" if bar.count > 1 else ""
        plot.rect(
            at,
            at + wide,
            low,
            max(bar.intensity, low),
            f"bar {bar.bound}",
            f"{bar.name}{joined}: {units.digits(bar.intensity)} MAC/B, "
            f"{units.seconds(bar.seconds)}, bound by {bar.bound}",
        )
        at += wide
    plot.line([(0, water), (total, water)], "level")
    plot.text(total, water, f"waterline {units.digits(water)}", anchor="end", dx=-4, dy=-6)
    return plot.svg()


@dataclass(frozen=True)
class Net:
    """One network for a gap plot: its actual and ideal latency and, where known, its score."""

    name: str
    cls: str
    shape: str
    actual: Figure
    ideal: float
    score: float | None = None


def ideal(rows: Iterable[OperatorRow]) -> float:
    """Ideal latency of a network: the sum of ``operations / R_peak`` over its operators."""
    return sum(r.ideal_s or 0.0 for r in rows)


def parts(rows: Sequence[OperatorRow], most: int = 5) -> list[Net]:
    """The modules that take longest, as networks of their own: the largest that are not the whole.

    A module that takes nearly all of its parent's time stands for the parent.
    """
    whole = sum(seconds_of(r) or 0.0 for r in rows)
    found: dict[str, list[OperatorRow]] = {"": list(rows)}
    # Open the module with the most time until enough parts of less than half the run are found.
    while len(found) < most + 1 and whole > 0:
        biggest = max(found, key=lambda p: _spent(found[p]) if _children(p, found[p]) else -1.0)
        inside = _children(biggest, found[biggest])
        if not inside:
            break
        del found[biggest]
        found.update(inside)
    ranked = sorted((p for p in found if p), key=lambda p: -_spent(found[p]))[:most]
    out: list[Net] = []
    for path in ranked:
        mine, seconds = found[path], _spent(found[path])
        timed = all(r.measured_s.value is not None for r in mine)
        actual = Figure(value=seconds, unit="s", how="measured" if timed else "predicted")
        out.append(Net(path, "after", "o", actual, ideal(mine)))
    return out


def _spent(rows: Iterable[OperatorRow]) -> float:
    return sum(seconds_of(r) or 0.0 for r in rows)


def _children(path: str, rows: Sequence[OperatorRow]) -> dict[str, list[OperatorRow]]:
    """Rows by the next part of their module path; empty where some are the module's own alone."""
    depth = path.count(".") + 1 if path else 0
    out: dict[str, list[OperatorRow]] = {}
    for row in rows:
        parts_ = row.module.split(".") if row.module else []
        if len(parts_) > depth:
            out.setdefault(".".join(parts_[: depth + 1]), []).append(row)
    return out


def gap(name: str, nets: Sequence[Net]) -> str | None:
    """Score over latency: hollow at the ideal latency, filled at the actual one."""
    nets = [n for n in nets if n.ideal > 0 and n.actual.value]
    if not nets:
        return None
    scored = all(n.score is not None for n in nets)
    rows = {
        n.name: n.score if scored and n.score is not None else float(-i) for i, n in enumerate(nets)
    }
    low, high = span([v for n in nets for v in (n.ideal, n.actual.known())], log=True, pad=0.12)
    said = "; ".join(
        f"{n.name}: ideal {units.seconds(n.ideal)}, {n.actual.how} {units.figure(n.actual)}, "
        f"efficiency {n.ideal / n.actual.known():.1%}"
        for n in nets
    )
    y = span(rows.values(), pad=0.35) if scored else (0.4 - len(nets), 0.9)
    plot = Plot(
        name,
        "Efficiency gap",
        said,
        (low, high),
        y,
        "latency",
        "score" if scored else "network and modules" if len(nets) > 1 else "",
        units.tick_seconds,
        (lambda v: units.digits(v, 4)) if scored else (lambda v: ""),
        log_x=True,
        height=320 if scored else 110 + 42 * len(nets),
    )
    for net in nets:
        level, actual = rows[net.name], net.actual.known()
        share = net.ideal / actual
        plot.line([(net.ideal, level), (actual, level)], f"gap {net.cls}")
        plot.dot(
            net.ideal,
            level,
            f"hollow {net.cls}",
            f"{net.name}, ideal: {units.seconds(net.ideal)}",
            shape=net.shape,
        )
        plot.dot(
            actual,
            level,
            net.cls,
            f"{net.name}, {net.actual.how}: {units.figure(net.actual)}",
            shape=net.shape,
        )
        plot.text(actual, level, f"{net.name}: {share:.1%} of peak", anchor="end", dx=0, dy=-11)
    return plot.svg()


def memory(name: str, series: Sequence[tuple[str, str, Sequence[MemoryPoint]]]) -> str | None:
    """Live bytes over the run, one stepped area per network; the peak of each is labelled."""
    drawn = [(label, cls, thin(points)) for label, cls, points in series if points]
    if not drawn:
        return None
    peaks = [(label, cls, max(points, key=lambda p: p[1])) for label, cls, points in drawn]
    size, unit = units.binary_unit(max(top for _, _, (_, top) in peaks))
    said = "; ".join(f"{label} peaks at {units.size(top)}" for label, _, (_, top) in peaks)
    plot = Plot(
        name,
        "Memory timeline",
        f"Predicted live bytes after each operator, weights included; {said}.",
        (0.0, 1.0),
        (0.0, max(top for _, _, (_, top) in peaks) * 1.15 / size),
        "progress through the run",
        f"live memory, {unit}",
        lambda v: f"{v:.0%}",
        units.tick_digits,
    )
    for label, cls, points in drawn:
        scaled = [(at, live / size) for at, live in points]
        plot.area(scaled, f"fill {cls}")
        plot.line(scaled, f"stroke {cls}", step=True, tip=label)
    for label, cls, (at, top) in peaks:
        plot.dot(at, top / size, cls, f"{label}: peak {units.size(top)}", r=4)
        plot.text(at, top / size, f"{label}: {units.size(top)}", dx=7, dy=-7)
    return plot.svg()


def thin(points: Sequence[MemoryPoint], most: int = WIDEST) -> list[tuple[float, float]]:
    """Points as (share of the run, bytes), the largest of each stretch kept, so no peak is lost."""
    count = len(points)
    step = max(1, -(-count // most))
    out: list[tuple[float, float]] = []
    for start in range(0, count, step):
        top = max(points[start : start + step], key=lambda p: p.live_bytes)
        out.append((start / count, float(top.live_bytes)))
    return [*out, (1.0, out[-1][1])] if out else []
