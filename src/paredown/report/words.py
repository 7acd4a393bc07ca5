"""The result in words: verdicts, ratios and recipes as sentences."""

from __future__ import annotations

from typing import Any

from paredown.figure import Figure
from paredown.report import units
from paredown.result import DownDoc

VERDICTS = {
    "met": "Budget met",
    "predicted_met": "Budget met by prediction only",
    "infeasible": "Budget not met",
    "predicted_infeasible": "Budget not met, by prediction",
    "no_gain": "No gain: keep the original",
}

LESS = {
    "latency": ("faster", "slower"),
    "energy": ("less energy", "more energy"),
    "memory": ("less memory", "more memory"),
    "size": ("smaller", "larger"),
    "traffic": ("less traffic", "more traffic"),
    "macs": ("fewer MACs", "more MACs"),
    "params": ("fewer parameters", "more parameters"),
}
"""Metrics where less is better, with the words for a change each way."""

NO_CHANGE = 0.02


def foreseen(doc: DownDoc) -> bool:
    """Whether the latencies of a result were predicted, as for a device that is not this one."""
    latency = doc.before.figures.get("latency")
    return latency is not None and latency.how == "predicted"


def change(metric: str, ratio: float) -> str:
    """A ratio in words: ``latency, 0.106`` -> ``9.4x faster``; within 2 %: ``the same latency``."""
    if ratio <= 0:
        return "n/a"
    if abs(ratio - 1) <= NO_CHANGE:
        return "the same " + units.title(metric).lower()
    name = metric.partition(".")[0]
    if name not in LESS:
        return f"{ratio:.1f}x higher" if ratio > 1 else f"{1 / ratio:.1f}x lower"
    better, worse = LESS[name]
    return f"{1 / ratio:.1f}x {better}" if ratio < 1 else f"{ratio:.1f}x {worse}"


def versus(doc: DownDoc, metric: str) -> Figure | None:
    """The pared network relative to the best single backend.

    Taken from ``ratios["METRIC:best_single_backend"]`` where it was measured as a pair, else the
    quotient of the two ratios to the baseline, without an interval.
    """
    other = doc.best_single_backend
    pair = doc.after.ratios.get(f"{metric}:best_single_backend")
    if pair is not None or other is None:
        return pair
    mine, theirs = doc.after.ratios.get(metric), other.ratios.get(metric)
    if mine is None or theirs is None or mine.value is None or not theirs.value:
        return None
    how = mine.how if mine.how == theirs.how else "measured"
    if not (mine.decides and theirs.decides):
        how = "predicted"
    return Figure(value=mine.value / theirs.value, unit="x", how=how)


def headline(doc: DownDoc) -> list[str]:
    """The result of a `down` in sentences: the ratios, the quality, what binds."""
    out = [s for s in (_speed(doc), _sizes(doc), _quality(doc)) if s]
    if not doc.changed and doc.verdict == "met":
        out.insert(0, "The original already meets the budget; nothing was changed.")
    if doc.verdict == "no_gain":
        out.insert(0, "No candidate was cheaper beyond doubt: the original is recommended.")
    if doc.binding and doc.verdict in ("infeasible", "predicted_infeasible"):
        out.append(f"What binds is {doc.binding}; the nearest result is saved.")
    if doc.verdict.startswith("predicted"):
        costs = [units.title(c.metric).lower() for c in doc.constraints if not c.achieved.decides]
        where = "" if doc.device == "this" else f" for {doc.device}"
        out.append(f"Predicted{where}, not measured: {', '.join(dict.fromkeys(costs))}.")
    if doc.interrupted:
        out.append("The search was interrupted; this is the best so far.")
    return out


def _speed(doc: DownDoc) -> str | None:
    ratio = doc.after.ratios.get("latency")
    if ratio is None or ratio.value is None or not _praised(doc):
        return None
    said = change("latency", ratio.value)
    than = "as" if said.startswith("the same") else "than"
    text = f"{said} {than} its author runs it ({doc.before.backend})"
    pair, other = versus(doc, "latency"), doc.best_single_backend
    if pair is not None and pair.value is not None and other is not None:
        both = change("latency", pair.value)
        switching = f"merely switching the runtime ({other.name})"
        if both.startswith("the same"):
            text += f", {both} as {switching}"
        else:
            text += f", {'but' if pair.value > 1 else 'and'} {both} than {switching}"
    if not ratio.decides:
        text += f" ({ratio.how}{'' if doc.device == 'this' else f' for {doc.device}'})"
    return text[0].upper() + text[1:] + "."


def _praised(doc: DownDoc) -> bool:
    """Whether there is a pared network to speak of: not where the original is kept."""
    return doc.changed and doc.verdict != "no_gain"


def _sizes(doc: DownDoc) -> str | None:
    parts: list[str] = []
    for metric in ("size", "memory", "energy"):
        ratio = doc.after.ratios.get(metric)
        after = doc.after.figures.get(metric)
        if ratio is None or ratio.value is None or after is None or not _praised(doc):
            continue
        mark = "" if ratio.decides else f", {ratio.how}"
        parts.append(f"{change(metric, ratio.value)} ({units.figure(after)}{mark})")
    if not parts:
        return None
    text = " and ".join(parts) if len(parts) < 3 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def _quality(doc: DownDoc) -> str | None:
    figures = doc.after.figures
    drop, score, fidelity = (figures.get(m) for m in ("drop", "score", "fidelity"))
    if drop is not None and drop.value is not None:
        factor = units.percent_factor(doc.constraints)
        drop = units.in_percent(drop, factor) if factor else drop
        text = f"Drop {units.figure(drop)}"
        if drop.spread is not None:
            low, high = (units.quantity(v, drop.unit) for v in drop.spread)
            text += f" (paired bootstrap, 95 %: {low} to {high})"
        text += f" on {drop.n:,} held-out examples" if drop.n else ""
        text += f", score {units.figure(score)}" if score is not None else ""
        return text + "."
    if fidelity is not None and fidelity.value is not None:
        return f"Fidelity to the original {units.figure(fidelity)}: that is not your metric."
    return None


def recipe(recipe_: dict[str, Any] | None) -> str:
    """A recipe in one line: ``fold-norm, static-int8 (percentile 99.9) -> openvino``."""
    if not recipe_:
        return "as it is"
    steps: list[str] = []
    for step in recipe_.get("steps") or []:
        settings = step.get("settings") or {}
        shown = ", ".join(f"{k} {v}" for k, v in settings.items())
        steps.append(f"{step.get('technique', '?')}{f' ({shown})' if shown else ''}")
    lower = recipe_.get("lower") or {}
    text = ", ".join(steps) or "no technique"
    return f"{text} -> {lower['backend']}" if lower.get("backend") else text
