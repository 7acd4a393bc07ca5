"""Predictions that may decide (`--accept predicted`): all costs on another device, and on this
machine those that cannot be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paredown import runtime
from paredown.budget import Budget
from paredown.cost import price
from paredown.device.device import Device
from paredown.figure import Figure
from paredown.graph.graph import Graph
from paredown.paring.request import Request
from paredown.search import pricing


@dataclass(frozen=True)
class Accepted:
    """What the cost model may say in place of a measurement.

    ``metrics`` are always predicted; where predictions are accepted ``elsewhere``, so is a figure
    that turns out to be unavailable (the memory of a runtime that cannot be counted). ``before``
    are the predicted figures of the original on the same device: a predicted ratio never has a
    measured side.
    """

    metrics: frozenset[str] = frozenset()
    elsewhere: bool = False
    before: Mapping[str, Figure] = field(default_factory=dict)

    def fill(
        self,
        figures: dict[str, Figure],
        ratios: dict[str, Figure],
        predicted: Mapping[str, Figure],
    ) -> None:
        """Put predictions, and their ratios to the predicted original, where they may stand."""
        for metric, figure in predicted.items():
            known = figures.get(metric)
            missing = self.elsewhere and known is not None and known.value is None
            if not (metric.partition(".")[0] in self.metrics or missing):
                continue
            figures[metric] = figure
            ratios.pop(metric, None)
            ratios |= pricing.ratios({metric: figure}, self.before)


def accepted(request: Request, graph: Graph) -> Accepted:
    """What may be predicted for a request; ``graph`` is the original's."""
    if not request.accept_predicted:
        return Accepted()
    return Accepted(request.predicted, True, original(graph, request.device))


def original(graph: Graph, device: Device) -> dict[str, Figure]:
    """The predicted figures of the original as its author runs it, in its own backend."""
    own = runtime.own_backend(graph.source)
    return pricing.predicted(price(graph, device, backend=own))


def notes(request: Request, backend: str, memory: Figure | None = None) -> list[str]:
    """What a reader must know of predictions that decided; ``memory`` is that of the result."""
    if not request.predicted:
        return []
    device = request.device
    if request.here:
        named = ", ".join(sorted(budgeted(request.budget) & request.predicted))
        return [f"{named}: predicted, since this machine cannot measure it"] if named else []
    threads = f"all {device.threads} of its threads" if device.threads > 1 else "its one thread"
    found = [
        f"every cost on {device.name} is predicted from its {device.how} figures, for {threads}; "
        f"quality (through {backend}) and sizes are taken for real, on this machine"
    ]
    used = dict.fromkeys((request.own_backend, backend))
    silent = [b for b in used if b not in device.overhead_s]
    if silent:
        found.append(
            f"{device.name} states no overhead of a call in {' or '.join(silent)}: the cost "
            "model's default stood in, whether or not that runtime exists there"
        )
    if memory is not None and memory.value and memory.value > device.memory.capacity_bytes:
        found.append(
            f"the result needs {memory.value:,.0f} bytes when it runs, more than the "
            f"{device.memory.capacity_bytes:,} of {device.name}'s {device.memory.name}"
        )
    return found


def budgeted(budget: Budget) -> frozenset[str]:
    """The names of the costs that a budget limits."""
    return frozenset(c.kind.name for c in budget.costs)
