"""Operator orders with a low peak: the lowest where it can be proven, else the best one found.

What is alive depends only on which operators have run, so the lowest peak is a bottleneck path
through those sets. An operator that is ready, takes no more than the peak so far and leaves no more
alive than before is run at once: moved forward it raises no later step. Serenity (Ahn et al., 2020,
arXiv:2003.02369) searches the same sets by dynamic programming.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from paredown.cost.arena.graphs import Dag

STATES = 4_000
"""Sets of operators visited before the search gives up."""


@dataclass(frozen=True)
class Order:
    """An order of operators, its peak in bytes, and whether no order has a lower one."""

    nodes: tuple[int, ...]
    peak: int
    optimal: bool


def peak_of(dag: Dag, order: Sequence[int]) -> int:
    """The most bytes alive while any operator runs. Raises ``ValueError`` for an invalid order."""
    run = _Run(dag)
    for node in order:
        if node not in run.ready():
            raise ValueError(f"operator {node} cannot run yet, or ran twice")
        run.step(node)
    if len(run.done) != dag.count:
        raise ValueError(f"{dag.count - len(run.done)} operators are missing from the order")
    return run.peak


def lowest(dag: Dag, states: int = STATES) -> Order:
    """The order with the lowest peak; the better of the given and a greedy one where that is hard.

    A state is a set of operators that ran; the next one expanded has the lowest peak so far, and
    of these the most operators.
    """
    given = tuple(range(dag.count))
    best = min(
        (Order(order, peak_of(dag, order), False) for order in (given, _greedy(dag))),
        key=lambda o: o.peak,
    )
    # While an operator runs all it touches is there, in any order.
    floor = max((sum(dag.size[s] for s in used) for used in dag.used), default=0)
    if best.peak <= floor:
        return Order(best.nodes, best.peak, True)
    start = _Run(dag)
    start.forced()
    heap = [(start.peak, -len(start.done), 0, start)]
    seen = {frozenset(start.done): start.peak}
    tick = 0
    while heap and tick < states:
        peak, _, _, run = heapq.heappop(heap)
        if len(run.done) == dag.count:
            return Order(tuple(run.order), peak, True)
        for node in sorted(run.ready()):
            after = run.copy()
            after.step(node)
            after.forced()
            key = frozenset(after.done)
            if after.peak < min(best.peak, seen.get(key, best.peak)):
                seen[key] = after.peak
                tick += 1
                heapq.heappush(heap, (after.peak, -len(after.done), tick, after))
    # Only orders with a lower peak were kept: with none left to expand, the best is proven.
    return Order(best.nodes, best.peak, not heap)


def _greedy(dag: Dag) -> tuple[int, ...]:
    """At each step the operator that leaves least alive, of these the one that takes least."""
    run = _Run(dag)
    while len(run.done) < dag.count:
        run.step(min(run.ready(), key=lambda i: (run.left_by(i), run.taken_by(i), i)))
    return tuple(run.order)


class _Run:
    """A partial order: what ran, what is alive, the peak so far."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        self.done: set[int] = set()
        self.order: list[int] = []
        self.alive = self.peak = 0
        self.waiting = [len(b) for b in dag.before]
        self.unread = {s: len(u) for s, u in dag.users.items()}
        self._ready = {i for i, n in enumerate(self.waiting) if not n}
        self._after = _after(dag)

    def copy(self) -> _Run:
        new = object.__new__(_Run)
        new.dag, new._after = self.dag, self._after
        new.done, new.order = set(self.done), list(self.order)
        new.alive, new.peak = self.alive, self.peak
        new.waiting, new.unread = list(self.waiting), dict(self.unread)
        new._ready = set(self._ready)
        return new

    def ready(self) -> set[int]:
        return self._ready

    def taken_by(self, node: int) -> int:
        """Bytes alive while the operator runs."""
        made = self.dag.made[node]
        return self.alive + sum(self.dag.size[s] for s in made)

    def left_by(self, node: int) -> int:
        """Bytes alive after it."""
        dag = self.dag
        freed = (s for s in dag.used[node] if self.unread[s] == 1 and s not in dag.kept)
        return self.taken_by(node) - sum(dag.size[s] for s in freed)

    def step(self, node: int) -> None:
        self.peak = max(self.peak, self.taken_by(node))
        self.alive = self.left_by(node)
        for s in self.dag.used[node]:
            self.unread[s] -= 1
        self.done.add(node)
        self.order.append(node)
        self._ready.discard(node)
        for later in self._after[node]:
            self.waiting[later] -= 1
            if not self.waiting[later]:
                self._ready.add(later)

    def forced(self) -> None:
        """Run whatever costs nothing, in order of position, until nothing does."""
        moved = True
        while moved:
            moved = False
            for node in sorted(self._ready):
                if self.taken_by(node) <= self.peak and self.left_by(node) <= self.alive:
                    self.step(node)
                    moved = True


def _after(dag: Dag) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in range(dag.count)]
    for i, needs in enumerate(dag.before):
        for j in needs:
            after[j].append(i)
    return after
