"""The figures of a report, from records: waterline, efficiency gap, front, memory, prediction.

Waterline and gap follow "On the Efficiency of Convolutional Neural Networks" (2024; catalogue key
``convfirst``): the op:byte ratio of each kernel against the water level ``R_peak / bandwidth``, and
the latency of a network against its ideal ``t* = operations / R_peak``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paredown.figure import Figure
from paredown.report import units, words
from paredown.report.svg import Plot, span
from paredown.result import DownDoc, MemoryPoint, OperatorRow, Side, Trial

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
        units.seconds,
        units.digits,
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


def gap(name: str, nets: Sequence[Net]) -> str | None:
    """Score over latency: hollow at the ideal latency, filled at the actual one."""
    nets = [n for n in nets if n.ideal > 0 and n.actual.value]
    if not nets:
        return None
    scored = all(n.score is not None for n in nets)
    rows = {
        n.name: n.score if scored and n.score is not None else float(i) for i, n in enumerate(nets)
    }
    low, high = span([v for n in nets for v in (n.ideal, n.actual.known())], log=True, pad=0.12)
    said = "; ".join(
        f"{n.name}: ideal {units.seconds(n.ideal)}, {n.actual.how} {units.figure(n.actual)}, "
        f"efficiency {n.ideal / n.actual.known():.1%}"
        for n in nets
    )
    y = span(rows.values(), pad=0.35) if scored else (-0.7, len(nets) - 0.3)
    plot = Plot(
        name,
        "Efficiency gap",
        said,
        (low, high),
        y,
        "latency",
        "score" if scored else "",
        units.seconds,
        (lambda v: units.digits(v, 4)) if scored else (lambda v: ""),
        log_x=True,
        height=320 if scored or len(nets) > 1 else 180,
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
    high = max(v for _, _, pts in drawn for _, v in pts)
    peaks = "; ".join(
        f"{label} peaks at {units.size(max(v for _, v in pts))}" for label, _, pts in drawn
    )
    plot = Plot(
        name,
        "Memory timeline",
        f"Predicted live bytes after each operator, weights included; {peaks}.",
        (0.0, 1.0),
        (0.0, high * 1.15),
        "progress through the run",
        "live memory",
        lambda v: f"{v:.0%}",
        units.size,
    )
    for label, cls, points in drawn:
        plot.area(points, f"fill {cls}")
        plot.line(points, f"stroke {cls}", step=True, tip=label)
    for label, cls, points in drawn:
        at, top = max(points, key=lambda p: p[1])
        plot.dot(at, top, cls, f"{label}: peak {units.size(top)}", r=4)
        plot.text(at, top, f"{label}: {units.size(top)}", dx=7, dy=-7)
    return plot.svg()


def thin(points: Sequence[MemoryPoint], most: int = WIDEST) -> list[tuple[float, float]]:
    """Points as (share of the run, bytes), the largest of each stretch kept, so no peak is lost."""
    last = max(1, len(points) - 1)
    step = max(1, -(-len(points) // most))
    out: list[tuple[float, float]] = []
    for start in range(0, len(points), step):
        top = max(points[start : start + step], key=lambda p: p.live_bytes)
        out.append((start / last, float(top.live_bytes)))
    return out


def cost_axis(doc: DownDoc) -> tuple[str, str] | None:
    """Latency against the drop where that is known, else fidelity, else size."""
    done = [t.measured for t in doc.trials if t.state == "done"] + [doc.after.figures]
    for metric in ("drop", "fidelity", "size"):
        if sum(1 for m in done if _known(m, metric) and _known(m, "latency")) >= 1:
            return "latency", metric
    return None


def front(points: Sequence[tuple[float, float]], *, up: bool = False) -> list[tuple[float, float]]:
    """The points that no other beats: least x, least y (most y with ``up``), by growing x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if up else p[1])):
        if not best or (y > best[-1][1] if up else y < best[-1][1]):
            best.append((x, y))
    return best


def pareto(name: str, doc: DownDoc) -> str | None:
    """Everything measured, with the original, the best single backend and the choice."""
    axes = cost_axis(doc)
    if axes is None:
        return None
    across, upward = axes
    tried = [
        t
        for t in doc.trials
        if t.state == "done" and _known(t.measured, across) and _known(t.measured, upward)
    ]
    at = [(t.measured[across].known(), t.measured[upward].known()) for t in tried]
    named: list[tuple[str, str, str, tuple[float, float]]] = []
    for side, cls, shape in (
        (doc.before, "before", "s"),
        (doc.best_single_backend, "single", "d"),
        (doc.after, "after", "o"),
    ):
        place = side and _place(side, across, upward, side is doc.before)
        if side is not None and place:
            named.append((side.name, cls, shape, place))
    every = at + [p for *_, p in named]
    if not every:
        return None
    unit = next(
        (t.measured[upward].unit for t in tried),
        doc.after.figures.get(upward, doc.before.figures.get("size")),
    )
    unit = unit if isinstance(unit, str) else unit.unit if unit else "1"
    y_low, y_high = span([y for _, y in every], pad=0.14)
    title_ = units.title(upward)
    plot = Plot(
        name,
        f"Everything measured: {units.title(across).lower()} against {title_.lower()}",
        f"{len(tried)} measured candidates, with {', '.join(n for n, *_ in named)}; "
        "the stepped line joins those that no other beats in both.",
        span([x for x, _ in every], log=True),
        (y_low, y_high),
        units.title(across).lower(),
        title_.lower(),
        units.seconds,
        lambda v: units.quantity(v, unit),
        log_x=True,
        height=360,
    )
    plot.line(front(at + [p for *_, p in named], up=upward == "fidelity"), "front", step=True)
    for trial, (x, y) in zip(tried, at, strict=True):
        plot.dot(
            x,
            y,
            "trial",
            f"#{trial.id} {words.recipe(trial.recipe)}: {units.seconds(x)}, "
            f"{units.quantity(y, unit)}",
            r=4,
        )
    for label, cls, shape, (x, y) in named:
        plot.dot(
            x, y, cls, f"{label}: {units.seconds(x)}, {units.quantity(y, unit)}", r=7, shape=shape
        )
        plot.text(x, y, label, dx=10, dy=-9)
    return plot.svg()


def agreement(name: str, pairs: Sequence[tuple[str, float, float]], what: str) -> str | None:
    """Predicted against measured seconds, logarithmic, with the diagonal and the 25 % band."""
    kept = [(label, p, m) for label, p, m in pairs if p > 0 and m > 0]
    if not kept:
        return None
    low, high = span([v for _, p, m in kept for v in (p, m)], log=True)
    plot = Plot(
        name,
        f"Predicted against measured latency of {what}",
        f"{len(kept)} points; on the diagonal the prediction is exact, within the band off by less "
        "than 25 %.",
        (low, high),
        (low, high),
        "measured",
        "predicted",
        units.seconds,
        units.seconds,
        log_x=True,
        log_y=True,
    )
    for factor in (1 / 1.25, 1.25):
        plot.line(
            [
                (low * max(1, 1 / factor), low * max(1.0, factor)),
                (high * min(1, 1 / factor), high * min(1.0, factor)),
            ],
            "band",
        )
    plot.line([(low, low), (high, high)], "level")
    for label, predicted, measured in kept[:WIDEST]:
        off = predicted / measured - 1
        plot.dot(
            measured,
            predicted,
            "trial",
            f"{label}: predicted {units.seconds(predicted)}, "
            f"measured {units.seconds(measured)} ({off:+.0%})",
            r=4,
        )
    return plot.svg()


def pairs(trials: Iterable[Trial], metric: str = "latency") -> list[tuple[str, float, float]]:
    """(label, predicted, measured) of every trial that has both."""
    return [
        (
            f"#{t.id} {words.recipe(t.recipe)}",
            t.predicted[metric].known(),
            t.measured[metric].known(),
        )
        for t in trials
        if _known(t.predicted, metric) and _known(t.measured, metric)
    ]


def _known(figures: dict[str, Figure], metric: str) -> bool:
    return metric in figures and figures[metric].value is not None


def _place(side: Side, across: str, upward: str, original: bool) -> tuple[float, float] | None:
    x = side.figures.get(across)
    y = side.figures.get(upward)
    exact = {"drop": 0.0, "fidelity": 1.0}
    value = y.value if y is not None else exact.get(upward) if original else None
    return (x.value, value) if x is not None and x.value is not None and value is not None else None
