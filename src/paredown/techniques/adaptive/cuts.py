"""Where a captured run can be cut in two: modules after which nothing but their result is used."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from paredown.graph.graph import Graph
from paredown.workload import Workload

WEIGHTS = frozenset({"parameter", "buffer", "constant"})


@dataclass(frozen=True)
class Cut:
    """A module's current path, the shape of its result, and the share of the run's MACs so far."""

    path: str
    shape: tuple[int, ...]
    share: float
    last: int
    """Index of its last node."""


def cuts(graph: Graph) -> list[Cut]:
    """Cuts of a run in order, one per tensor: the outermost module that makes it.

    Only results ``(batch, channels, h, w)`` or ``(batch, tokens, channels)``.
    """
    nodes = graph.nodes
    made = {t: n.index for n in nodes for t in n.outputs}
    used: dict[int, int] = {}
    for node in nodes:
        for t in node.inputs:
            used[t] = node.index
    used |= dict.fromkeys(graph.outputs, len(nodes))
    # After node i the run goes on with these tensors alone.
    alive: list[set[int]] = [set() for _ in nodes]
    for t, end in used.items():
        if graph.tensors[t].kind not in WEIGHTS:
            for i in range(max(made.get(t, 0), 0), min(end, len(nodes))):
                alive[i].add(t)
    under: dict[str, list[int]] = defaultdict(list)
    for node in nodes:
        path = node.module
        while path:
            under[path].append(node.index)
            path = path.rpartition(".")[0]
    total, done, sums = max(1, graph.macs), 0, list[int]()
    for node in nodes:
        done += node.macs or 0
        sums.append(done)
    batch = graph.tensors[graph.inputs[0]].shape[:1] if graph.inputs else ()
    found: dict[int, Cut] = {}
    for path, at in sorted(under.items(), key=lambda item: len(item[0])):
        first, last = min(at), max(at)
        if last - first + 1 != len(at) or len(alive[last]) != 1:
            continue
        (t,) = alive[last]
        shape = graph.tensors[t].shape
        if t not in nodes[last].outputs or len(shape) not in (3, 4) or shape[:1] != batch:
            continue
        found.setdefault(t, Cut(path, shape, sums[last] / total, last))
    return sorted(found.values(), key=lambda c: c.last)


def not_a_classifier(workload: Workload, graph: Graph) -> str | None:
    """Why a run's result is not one row of logits per input, None when it is."""
    if workload.run != "forward":
        return f"a run of {workload.run!r} has no one answer to give early"
    shapes = [graph.tensors[t].shape for t in graph.outputs]
    batch = graph.tensors[graph.inputs[0]].shape[:1] if graph.inputs else ()
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][:1] != batch or shapes[0][1] < 2:
        return "its result is not one row of classes per input"
    return None


def pool_of(shape: tuple[int, ...]) -> int:
    """The finest grid, 4 at most, that a head pools features of this shape to."""
    if len(shape) == 3:
        return 1
    return next(p for p in (4, 3, 2, 1) if shape[2] % p == 0 and shape[3] % p == 0)


def channels_of(shape: tuple[int, ...]) -> int:
    """Channels of features of this shape."""
    return shape[2] if len(shape) == 3 else shape[1]


def nearest(found: list[Cut], shares: list[float]) -> list[Cut]:
    """For each share of the MACs the nearest cut that is not taken yet, in order of the run."""
    left, picked = list(found), list[Cut]()
    for wanted in shares[: len(found)]:
        best = min(left, key=lambda c: abs(c.share - wanted))
        left.remove(best)
        picked.append(best)
    return sorted(picked, key=lambda c: c.last)
