"""Peak memory from storage lifetimes: a sweep over what the captured run held at every node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from paredown.graph.graph import Graph, Storage
from paredown.graph.scratch import scratch

WEIGHTS = frozenset({"parameter", "buffer", "constant"})


@dataclass(frozen=True)
class Liveness:
    """Bytes held over a run.

    ``weights`` are parameters, buffers and constants; ``inputs`` what the caller passed in;
    ``timeline`` the bytes that the run itself had allocated while each node ran; ``high_water`` its
    maximum, at node ``peak_index``; ``largest`` the storages alive there, biggest first.
    """

    weights: int
    inputs: int
    timeline: tuple[tuple[int, int], ...]
    high_water: int
    peak_index: int
    largest: tuple[Storage, ...]

    @property
    def peak_bytes(self) -> int:
        """`memory` of CONTRACTS: weights plus the high-water mark of what the run allocates."""
        return self.weights + self.high_water


def liveness(
    graph: Graph, without: Collection[int] = (), *, eager_threads: int | None = None
) -> Liveness:
    """Sweep a graph; ``without`` names storages that a backend never allocates.

    A storage is live from the node that made it through the last one before its end. With
    ``eager_threads`` what eager CPU kernels hold inside a call (`scratch`) counts while it runs.
    """
    change = [0] * (len(graph.nodes) + 1)
    made = [s for s in graph.storages.values() if s.created >= 0 and s.id not in without]
    for s in made:
        change[s.created] += s.nbytes
        if s.freed is not None:
            change[max(s.freed, s.created) + 1] -= s.nbytes
    live, timeline = 0, []
    for i in range(len(graph.nodes)):
        live += change[i]
        inside = scratch(graph.nodes[i], graph, eager_threads) if eager_threads else 0
        timeline.append((i, live + inside))
    peak_index, high_water = max(timeline, key=lambda p: p[1], default=(0, 0))
    there = [
        s for s in made if s.created <= peak_index and (s.freed is None or s.freed >= peak_index)
    ]
    before = [s for s in graph.storages.values() if s.created < 0]
    return Liveness(
        weights=sum(s.nbytes for s in before if s.kind in WEIGHTS),
        inputs=sum(s.nbytes for s in before if s.kind == "input"),
        timeline=tuple(timeline),
        high_water=high_water,
        peak_index=peak_index,
        largest=tuple(sorted(there, key=lambda s: -s.nbytes)[:16]),
    )
