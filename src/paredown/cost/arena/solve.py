"""The smallest arena that can be found, and what is proven about it.

Heuristics first; where they miss the lower bound, the exact search on each part of the time line
that needs it, from below (is the bound reached?) and from above (is there anything smaller?), with
budgets that grow; at last HiGHS on small parts. Budgets are counted in nodes, so that the same
buffers give the same places; the clock only ends what takes too long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from paredown.cost.arena import greedy, milp
from paredown.cost.arena.problem import Buffer, Placement, Problem
from paredown.cost.arena.search import PREFERENCES, OutOfBudget, Search

BUDGETS = (400, 2_000, 10_000, 50_000, 250_000, 1_000_000)
"""Nodes of one search, round by round."""
SQUEEZED = ("tight, lifetime", "tight, size", "area")
ROUNDS = 48
"""Orders that are improved by what sticks out, and how often."""
POLISH_S = 0.5
"""Seconds spent on a smaller arena once everything fits."""
MILP_PAIRS = 150
"""Pairs of buffers that live together up to which HiGHS is asked."""


def place(
    buffers: Sequence[Buffer],
    *,
    capacity: int | None = None,
    seconds: float = 10.0,
    exact: bool = True,
) -> Placement:
    """Offsets in an arena as small as can be found within ``seconds``.

    With ``capacity`` that time decides whether there is room; once there is, the arena is made
    smaller for `POLISH_S` at most. ``exact=False`` leaves it at the heuristics. Never higher than
    greedy-by-size.
    """
    whole = Problem([b for b in buffers if b.size])
    clock = _Clock(time.monotonic() + seconds)
    parts = [_Part(Problem([whole.buffers[i] for i in group])) for group in whole.parts()]
    load = max((part.p.load for part in parts), default=0)
    by_size = [part.greedy(clock) for part in parts]
    if exact:
        room = capacity is None or _decide(parts, capacity, clock)
        if capacity is not None:
            clock.deadline = min(clock.deadline, time.monotonic() + POLISH_S)
        if room:
            # Below the highest bound of any part nothing is gained.
            for part in sorted(parts, key=lambda part: -part.height):
                part.search(max(other.bound for other in parts), clock)
    height = max((part.height for part in parts), default=0)
    bound = max((part.bound for part in parts), default=0)
    offsets = {b.id: 0 for b in buffers}
    for part in parts:
        offsets |= {b.id: o for b, o in zip(part.p.buffers, part.offsets, strict=True)}
    how = "optimal" if height == bound else "bound"
    if capacity is not None and bound > capacity:
        how = "no room"
    proof = max(parts, key=lambda part: part.bound).proof if parts else "there are no buffers"
    return Placement(offsets, height, bound, how, proof, max(by_size, default=0), load, clock.nodes)


def _decide(parts: list[_Part], capacity: int, clock: _Clock) -> bool:
    """Whether every part is known to have room; stops at the first that has none."""
    return all(part.decide(capacity, clock) for part in sorted(parts, key=lambda p: -p.bound))


@dataclass
class _Clock:
    deadline: float
    nodes: int = 0

    def left(self) -> float:
        return self.deadline - time.monotonic()


class _Part:
    """Buffers that are connected in time, the best places found and the bound proven."""

    def __init__(self, p: Problem) -> None:
        self.p = p
        self.bound = p.load
        self.proof = "the bytes alive at once"
        self.offsets: list[int] = []
        self.height = -1

    def greedy(self, clock: _Clock) -> int:
        """Try every order until one meets the bound; returns the height of greedy-by-size.

        Out of time, the orders that learn are left out.
        """
        first = -1
        for _, offsets in greedy.candidates(self.p):
            self._keep(offsets)
            first = self.height if first < 0 else first
            if self.height == self.bound:
                return first
        orders = greedy.orders(self.p)
        for name in SQUEEZED:
            for offsets in greedy.squeezed(self.p, orders[name], ROUNDS):
                self._keep(offsets)
                if self.height == self.bound or clock.left() <= 0:
                    return first
        return first

    def decide(self, capacity: int, clock: _Clock) -> bool:
        """Whether the part has places within ``capacity``; False where that is not known."""
        for nodes in BUDGETS:
            for prefer in PREFERENCES:
                if self.height <= capacity or self.bound > capacity or clock.left() <= 0:
                    break
                self._try(capacity, nodes, prefer, clock)
        return self.height <= capacity

    def search(self, aim: int, clock: _Clock) -> None:
        """Bring bound and height together, or the height down to ``aim``, which is enough."""
        for nodes in BUDGETS:
            for prefer in PREFERENCES:
                if self.height <= max(aim, self.bound) or clock.left() <= 0:
                    return
                self._try(max(self.bound, aim), nodes, prefer, clock)
            middle = (self.bound + self.height) // 2 // self.p.grain * self.p.grain
            if max(aim, self.bound) < middle < self.height and clock.left() > 0:
                self._try(middle, nodes, "lifetime", clock)
            pairs = sum(map(len, self.p.beside)) // 2
            if nodes == BUDGETS[2] and pairs <= MILP_PAIRS and clock.left() > 0:
                self._program(clock)

    def _try(self, height: int, nodes: int, prefer: str, clock: _Clock) -> None:
        """One search at one height; raises the bound while there is no room and budget is left."""
        search = Search(self.p, height, nodes, clock.deadline, prefer)
        try:
            found = search.run(range(len(self.p.size)))
        except OutOfBudget:
            return
        finally:
            clock.nodes += search.visited
        if found is not None:
            self._keep([found[i] for i in range(len(self.p.size))])
        elif search.needed > self.bound:
            self.bound = min(search.needed, self.height)
            self.proof = "exhaustive search below it"

    def _program(self, clock: _Clock) -> None:
        offsets, bound = milp.solve(self.p, self.height, self.bound, clock.left())
        if offsets is not None:
            self._keep(offsets)
        if bound > self.bound:
            self.bound, self.proof = min(bound, self.height), "the integer program's bound (HiGHS)"

    def _keep(self, offsets: list[int]) -> None:
        height = self.p.height(offsets)
        if self.height < 0 or height < self.height:
            self.height, self.offsets = height, offsets
