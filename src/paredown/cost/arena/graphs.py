"""Buffers of a captured run: what it allocates, in program order or in another valid one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paredown.cost.arena.problem import Buffer
from paredown.graph.graph import Graph


@dataclass(frozen=True)
class Dag:
    """What an order must keep: operators before others, and the buffers they make and use.

    ``before[i]`` are operators that must have run before ``i``; ``made[i]`` and ``used[i]`` are
    buffers; ``users[b]`` all operators that touch buffer ``b``; ``kept`` live to the end.
    """

    before: tuple[frozenset[int], ...]
    made: tuple[frozenset[int], ...]
    used: tuple[frozenset[int], ...]
    users: dict[int, frozenset[int]]
    size: dict[int, int]
    kept: frozenset[int]

    @property
    def count(self) -> int:
        """Number of operators."""
        return len(self.before)


def dag(graph: Graph) -> Dag:
    """The order that a graph needs: readers after writers, in-place writers after readers.

    Weights and inputs are no buffers of the run, but writing to them is ordered too.
    """
    inner = {s.id: s.nbytes for s in graph.storages.values() if s.created >= 0 and s.nbytes}
    storage = {t.id: t.storage for t in graph.tensors.values()}
    wrote: dict[int, int] = {}
    readers: dict[int, set[int]] = {}
    before: list[frozenset[int]] = []
    made: list[frozenset[int]] = []
    used: list[frozenset[int]] = []
    users: dict[int, set[int]] = {b: set() for b in inner}
    for i, node in enumerate(graph.nodes):
        reads = {storage[t] for t in node.inputs}
        writes = {storage[t] for t in node.outputs}
        if node.view:
            writes -= reads
        needs: set[int] = set()
        for s in reads | writes:
            if s in wrote:
                needs.add(wrote[s])
        for s in writes:
            needs |= readers.pop(s, set())
            wrote[s] = i
        for s in reads - writes:
            readers.setdefault(s, set()).add(i)
        before.append(frozenset(needs - {i}))
        here = {s for s in reads | writes if s in inner}
        made.append(frozenset(s for s in here if not users[s]))
        used.append(frozenset(here))
        for s in here:
            users[s].add(i)
    kept = frozenset(storage[t] for t in graph.outputs) & inner.keys()
    touched = {s: frozenset(u) for s, u in users.items() if u}
    return Dag(tuple(before), tuple(made), tuple(used), touched, inner, kept)


def buffers(graph: Graph, order: Sequence[int] | None = None) -> list[Buffer]:
    """What a run allocates as buffers over the steps of an order (default: as it was captured).

    A buffer lives from the operator that makes it through the last one that touches it; what the
    run returns lives to the end. Weights and inputs are left out.
    """
    found = dag(graph)
    order = range(found.count) if order is None else order
    step = {node: at for at, node in enumerate(order)}
    out: list[Buffer] = []
    for s, users in found.users.items():
        steps = [step[i] for i in users]
        end = found.count if s in found.kept else max(steps) + 1
        out.append(Buffer(str(s), min(steps), end, found.size[s]))
    return sorted(out, key=lambda b: (b.lower, b.upper, b.id))
