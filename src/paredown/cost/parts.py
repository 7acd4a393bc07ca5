"""What a loop's parts are predicted to take: its first call, and each later one."""

from __future__ import annotations

from typing import Any

from paredown.cost.price import Priced
from paredown.cost.tables import COMPILED, VIEW_OVERHEAD, overhead
from paredown.figure import Figure, predicted


def parts(priced: Priced) -> dict[str, Figure]:
    """``latency.first`` and ``latency.per_token`` of a captured loop; nothing for other runs."""
    source: Any = priced.graph.source
    loop = getattr(source, "loop", None)
    if loop is None or not loop.parted:
        return {}
    first, later = loop.phases
    steps = loop.steps(source.inputs, source.kwargs)
    found = {"latency.first": predicted(_seconds(priced, first), "s")}
    if steps > 1:
        found["latency.per_token"] = predicted(_seconds(priced, later) / (steps - 1), "s")
    return found


def rate(priced: Priced) -> Figure:
    """Predicted ``throughput``: runs, or tokens of a generation, one run after the other."""
    source: Any = priced.graph.source
    loop = getattr(source, "loop", None)
    made, unit = 1, "runs"
    if loop is not None:
        made, unit = loop.made(source.inputs, source.kwargs), loop.unit
    return predicted(made / priced.seconds, f"{unit}/s", reason=priced.latency.reason)


def _seconds(priced: Priced, phase: str) -> float:
    views = 0.0
    if priced.backend not in COMPILED:
        count = sum(n.view and n.phase == phase for n in priced.graph.nodes)
        views = count * VIEW_OVERHEAD * overhead(priced.device, priced.backend)
    return views + sum(c.seconds for c in priced.costs if c.run.node.phase == phase)
