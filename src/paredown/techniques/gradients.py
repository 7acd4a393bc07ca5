"""Whether gradients reach a network's weights: what every technique that trains asks first."""

from __future__ import annotations

from paredown.graph.graph import Graph
from paredown.workload import Workload


def without_gradient(graph: Graph) -> str | None:
    """Which of our own operators stops gradients, in one line, or None."""
    ours = next((n.op for n in graph.nodes if n.op.startswith("paredown::")), None)
    return None if ours is None else f"{ours} has no gradient: train before the numeric steps"


def untrainable(workload: Workload, graph: Graph) -> str | None:
    """Why the network's own weights cannot be trained, or None."""
    if (why := without_gradient(graph)) is not None:
        return why
    if not any(p.requires_grad for p in workload.model.parameters()):
        return "no parameter of the network is trained (requires_grad)"
    return None
