"""Figures as people read them: ms, MiB, mJ, M MACs; and how each one is known."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paredown.figure import Figure
from paredown.result import ConstraintResult

BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))

MARKS = {"measured": "●", "counted": "■", "predicted": "○", "nominal": "◇", "unavailable": "-"}
"""One mark per way of knowing, beside the word where there is room for it."""

MEANINGS = {
    "measured": "timed or read on the machine named below",
    "counted": "exact by construction",
    "predicted": "from a model of cost, not measured",
    "nominal": "from a data sheet",
    "unavailable": "cannot be had here; the reason stands beside it",
}

TITLES = {
    "latency": "Latency",
    "throughput": "Throughput",
    "memory": "Memory",
    "size": "Size on disk",
    "energy": "Energy per run",
    "traffic": "Memory traffic",
    "macs": "MACs",
    "params": "Parameters",
    "score": "Score",
    "drop": "Drop in score",
    "fidelity": "Fidelity",
}


UNITS = {
    "latency": "s",
    "throughput": "runs/s",
    "memory": "B",
    "size": "B",
    "energy": "J",
    "traffic": "B",
    "macs": "MAC",
}
"""Unit of each metric that has one; the others are counts or scores."""


def title(metric: str) -> str:
    """A metric's name for a table: ``latency.p95`` -> ``Latency, p95``."""
    root, _, part = metric.partition(".")
    name = TITLES.get(root, root.replace("_", " ").capitalize())
    return f"{name}, {part.replace('_', ' ')}" if part else name


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits, unpadded below one: 0.06, 1.70, 25.7, 512."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude < 1:
        text = f"{value:.{significant}g}"
        return f"{value:.1e}" if "e" in text else text
    places = max(0, significant - len(str(int(magnitude))))
    return f"{value:,.{places}f}"


def tick(text: str) -> str:
    """A text for an axis: without zeros behind the point. ``30.0 µs`` -> ``30 µs``."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda m: m[1] if len(m[1]) > 1 else "", text)


def tick_seconds(value: float) -> str:
    """Seconds for an axis."""
    return tick(_small(value, "s"))


def tick_digits(value: float) -> str:
    """A plain number for an axis."""
    return tick(digits(value))


def quantity(value: float, unit: str) -> str:
    """A value in SI base units or counts as text: ``0.0017, s`` -> ``1.70 ms``."""
    if unit == "B":
        return _binary(value)
    if unit == "B/s":
        return _decimal(value, "B/s")
    if unit in ("s", "J", "W"):
        return _small(value, unit)
    if unit == "MAC":
        return _decimal(value, "MACs")
    if unit in ("MAC/s", "FLOP/s"):
        return _decimal(value, unit)
    if unit == "x":
        return f"{digits(value)}x"
    if unit == "%":
        return f"{digits(value)} %"
    if unit in ("1", "score", "parameters", ""):
        return digits(value, 4) if abs(value) < 1000 else _decimal(value, "").strip()
    return f"{digits(value)} {unit}"


def figure(fig: Figure | None) -> str:
    """A figure's value alone; ``n/a`` when there is none."""
    if fig is None or fig.value is None:
        return "n/a"
    return quantity(fig.value, fig.unit)


def spread(fig: Figure | None) -> str:
    """A figure's interval and sample count: ``1.68 ms to 1.74 ms; n=40``; empty without."""
    if fig is None:
        return ""
    parts: list[str] = []
    if fig.spread is not None:
        parts.append(f"{quantity(fig.spread[0], fig.unit)} to {quantity(fig.spread[1], fig.unit)}")
    if fig.n is not None:
        parts.append(f"n={fig.n}")
    if fig.quantiles:
        wanted = ((k, v) for k, v in fig.quantiles.items() if k in ("p50", "p95", "p99"))
        parts.append(
            ", ".join(f"{k} {quantity(v, fig.unit)}" for k, v in wanted) + f" over {fig.over}"
        )
    return "; ".join(parts)


def seconds(value: float | None) -> str:
    """Seconds as text; ``n/a`` for None."""
    return "n/a" if value is None else _small(value, "s")


def count(value: float | None, what: str = "") -> str:
    """A count with a decimal prefix: ``25.6 M MACs``."""
    return "n/a" if value is None else _decimal(value, what).strip()


def size(value: float | None) -> str:
    """Bytes as text; ``n/a`` for None."""
    return "n/a" if value is None else _binary(value)


def duration(value: float) -> str:
    """Wall time for people: ``45 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent_factor(results: Sequence[ConstraintResult]) -> float | None:
    """Percent per unit of score, from a constraint asked in percent; None when none was."""
    for r in results:
        number = r.text.rstrip().removesuffix("%").rpartition("=")[2]
        if r.text.rstrip().endswith("%") and r.unit in ("score", "") and r.value > 0:
            return float(number) / r.value
    return None


def in_percent(fig: Figure, factor: float) -> Figure:
    """A figure of score in percent of its scale."""
    scaled = None if fig.spread is None else (fig.spread[0] * factor, fig.spread[1] * factor)
    value = None if fig.value is None else fig.value * factor
    return fig.model_copy(update={"value": value, "spread": scaled, "unit": "%"})


def binary_unit(largest: float) -> tuple[float, str]:
    """The unit that suits an axis up to ``largest`` bytes: its size in bytes and its name."""
    step = 0
    while largest / 1024**step >= 1024 and step < len(BINARY) - 1:
        step += 1
    return float(1024**step), BINARY[step]


def _binary(value: float) -> str:
    size_, step = float(value), 0
    while abs(size_) >= 1024 and step < len(BINARY) - 1:
        size_, step = size_ / 1024, step + 1
    return f"{size_:.0f} B" if step == 0 else f"{digits(size_)} {BINARY[step]}"


def _decimal(value: float, unit: str) -> str:
    for scale, prefix in DECIMAL:
        if abs(value) >= scale:
            return (
                f"{digits(value / scale)} {prefix}{' ' if prefix and unit[:1] == 'M' else ''}{unit}"
            )
    return f"{digits(value)} {unit}"


def _small(value: float, unit: str) -> str:
    if value == 0:
        return f"0 {unit}"
    if unit == "s" and value >= 100:
        return duration(value)
    for scale, prefix in SMALL:
        if abs(value) >= scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{value:.1e} {unit}"
