"""The figures of a search: everything measured with its front, and predicted against measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paredown.figure import Figure
from paredown.report import units, words
from paredown.report.svg import Plot, span
from paredown.result import DownDoc, Side, Trial

MOST_POINTS = 400


def cost_axis(doc: DownDoc) -> tuple[str, str] | None:
    """Latency against the drop where that is known, else fidelity, else size."""
    done = [_figures(t, doc) for t in doc.trials if t.state == "done"] + [doc.after.figures]
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
    found = [(t, _figures(t, doc)) for t in doc.trials if t.state == "done"]
    found = [(t, f) for t, f in found if _known(f, across) and _known(f, upward)]
    tried = [t for t, _ in found]
    at = [(f[across].known(), f[upward].known()) for _, f in found]
    named: list[tuple[str, str, str, tuple[float, float]]] = []
    for side, label, cls, shape in (
        (doc.before, "original", "before", "s"),
        (doc.best_single_backend, "best single backend", "single", "d"),
        (doc.after, "pared", "after", "o"),
    ):
        place = side and _place(side, across, upward, side is doc.before)
        if side is not None and place:
            named.append((label, cls, shape, place))
    every = at + [p for *_, p in named]
    if not every:
        return None
    unit = units.UNITS.get(upward, "1")
    y_low, y_high = span([y for _, y in every], pad=0.14)
    title_ = units.title(upward)
    how = "predicted " if words.foreseen(doc) else ""
    plot = Plot(
        name,
        f"Everything {'tried' if how else 'measured'}: {how}{units.title(across).lower()} against "
        f"{title_.lower()}",
        f"{len(tried)} {'' if how else 'measured '}candidates, "
        f"with {', '.join(n for n, *_ in named)}; "
        "the stepped line joins those that no other beats in both.",
        span([x for x, _ in every], log=True),
        (y_low, y_high),
        f"{how}{units.title(across).lower()}",
        title_.lower(),
        units.tick_seconds,
        lambda v: units.tick(units.quantity(v, unit)),
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
        units.tick_seconds,
        units.tick_seconds,
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
    for label, predicted, measured in kept[:MOST_POINTS]:
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


def _figures(trial: Trial, doc: DownDoc) -> dict[str, Figure]:
    """What a trial was judged by: its predicted costs too where none could be measured."""
    return {**trial.predicted, **trial.measured} if words.foreseen(doc) else trial.measured


def _known(figures: dict[str, Figure], metric: str) -> bool:
    return metric in figures and figures[metric].value is not None


def _place(side: Side, across: str, upward: str, original: bool) -> tuple[float, float] | None:
    x = side.figures.get(across)
    y = side.figures.get(upward)
    exact = {"drop": 0.0, "fidelity": 1.0}
    value = y.value if y is not None else exact.get(upward) if original else None
    return (x.value, value) if x is not None and x.value is not None and value is not None else None
