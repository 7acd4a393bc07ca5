"""A constraint from what the user wrote: ``latency <= 0.3x``, ``drop <= 1%``, ``size <= 5 MiB``."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches

from paredown.constraint import METRICS, UNITS, Constraint, Metric
from paredown.errors import BudgetError

_FORM = re.compile(
    r"""^\s*(?P<metric>[A-Za-z_][\w.]*)\s*
        (?P<op><=|>=|==|=|<|>|!=)\s*
        (?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*
        (?P<unit>[^\s\d].*?)?\s*$""",
    re.VERBOSE,
)
_SPELLING = str.maketrans({"≤": "<=", "≥": ">=", "\u00d7": "x", "\u00b5": "u", "\u03bc": "u"})


def parse_one(text: str) -> Constraint:
    """The constraint a text states; ``BudgetError`` where it states none."""
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
