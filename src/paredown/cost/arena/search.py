"""The smallest arena by exhaustive search: is there a placement within a capacity, and if not, why?

Any placement can be pushed down until every buffer stands at 0 or on another. So it is enough to
build from below: over the lowest free section one buffer is put, or it is decided that none is and
the floor rises to the next height at which one could stand. A branch ends where the floor of a
section and what is still to be placed over it exceed the capacity; what falls apart in time is
solved part by part; states that failed are remembered. Capacities rise from the load to the
smallest one that some branch would have needed (iterative deepening), so the first success is the
optimum. Near to MiniMalloc (Moffitt, ASPLOS 2023), which orders buffers by offset instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from paredown.cost.arena.problem import Problem

MEMORY = 200_000
"""Failed states that are remembered at most."""


class OutOfBudget(Exception):
    """The search was stopped before it had an answer."""


@dataclass
class Search:
    """One search for a placement of some buffers within ``capacity``.

    ``prefer`` (one of `PREFERENCES`) says what is tried first. ``needed`` is, after a failure, the
    smallest capacity at which the search could end otherwise: a proven lower bound. Raises
    ``OutOfBudget`` after ``nodes`` nodes or at ``deadline`` (of the monotonic clock).
    """

    problem: Problem
    capacity: int
    nodes: int
    deadline: float = sys.float_info.max
    prefer: str = "lifetime"
    visited: int = 0
    needed: int = sys.maxsize
    _offsets: dict[int, int] = field(default_factory=dict)
    _failed: set[tuple[int, ...]] = field(default_factory=set)

    def run(self, part: Sequence[int]) -> dict[int, int] | None:
        """Offsets of the buffers of ``part`` by index, or None where there is no placement."""
        p = self.problem
        self._rank = PREFERENCES[self.prefer](p)
        # Per section: the floor, the top of what was placed last, the bytes still to come.
        self._floor, self._top = [0] * p.sections, [0] * p.sections
        self._left = [0] * p.sections
        for i in part:
            for k in range(p.start[i], p.stop[i]):
                self._left[k] += p.size[i]
        if not self._fits(max(self._left, default=0)):
            return None
        with _deep(len(part)):
            found = self._solve(sorted(part, key=lambda i: p.start[i]))
        return dict(self._offsets) if found else None

    def _solve(self, part: list[int]) -> bool:
        """Place what is left of one part, sorted by start; undo everything where that fails."""
        start, stop, floor, left = self.problem.start, self.problem.stop, self._floor, self._left
        if len(part) == 1:
            i = part[0]
            at = max(floor[start[i] : stop[i]])
            self._offsets[i] = at
            return self._fits(at + self.problem.size[i])
        self._count()
        first, last = start[part[0]], max([stop[i] for i in part])
        flags = [2 * f + (f == t) for f, t in zip(floor[first:last], self._top[first:last],
                                                  strict=True)]  # fmt: skip
        state = (*part, -1, *flags)
        if state in self._failed:
            return False
        level = min(floor[first:last])
        k = max([k for k in range(first, last) if floor[k] == level], key=lambda k: (left[k], -k))
        low = high = k
        while low > first and floor[low - 1] == level:
            low -= 1
        while high < last and floor[high] == level:
            high += 1
        over = [i for i in part if start[i] <= k < stop[i]]
        here = [i for i in over if low <= start[i] and stop[i] <= high]
        done: set[tuple[int, int, int]] = set()
        for i in sorted(here, key=self._rank.__getitem__):
            same = (start[i], stop[i], self.problem.size[i])
            if same not in done and self._stands(i, level):
                done.add(same)
                if self._put(i, level, part):
                    return True
        if self._rise(k, level, part, over):
            return True
        if len(self._failed) < MEMORY:
            self._failed.add(state)
        return False

    def _stands(self, i: int, level: int) -> bool:
        """Whether something that was placed holds the buffer up; else it could be pushed down."""
        return level == 0 or level in self._top[self.problem.start[i] : self.problem.stop[i]]

    def _put(self, i: int, level: int, part: list[int]) -> bool:
        p, floor, top, left = self.problem, self._floor, self._top, self._left
        a, b, size = p.start[i], p.stop[i], p.size[i]
        high = level + size
        if not self._fits(level + max(left[a:b])):
            return False
        before = top[a:b]
        for k in range(a, b):
            left[k] -= size
            floor[k] = top[k] = high
        self._offsets[i] = level
        if self._parts([j for j in part if j != i]):
            return True
        for k in range(a, b):
            left[k] += size
            floor[k] = level
        top[a:b] = before
        return False

    def _rise(self, k: int, level: int, part: list[int], over: list[int]) -> bool:
        """Leave ``level`` empty over section ``k``: up to where one of ``over`` could stand."""
        p, floor = self.problem, self._floor
        up = sys.maxsize
        for i in over:
            a, b = p.start[i], p.stop[i]
            at = max(floor[a:b])
            if at == level:
                # It is not put here, so it will stand on one of its neighbours that are to come.
                at = min(
                    [
                        max(floor[p.start[j] : p.stop[j]]) + p.size[j]
                        for j in part
                        if p.start[j] < b and a < p.stop[j] and j != i
                    ],
                    default=0,
                )
                if not at:
                    return False
            up = min(up, at)
        if not self._fits(up + self._left[k]):
            return False
        floor[k] = up
        if self._solve(part):
            return True
        floor[k] = level
        return False

    def _parts(self, part: list[int]) -> bool:
        """Solve what is left group by group, the tightest first."""
        p, floor, left, top = self.problem, self._floor, self._left, self._top
        groups: list[list[int]] = []
        reach = -1
        for i in part:
            if p.start[i] >= reach:
                groups.append([])
            groups[-1].append(i)
            reach = max(reach, p.stop[i])
        if len(groups) < 2:
            return not groups or self._solve(groups[0])
        spans = [(p.start[g[0]], max(p.stop[i] for i in g)) for g in groups]
        slack = [min(-floor[k] - left[k] for k in range(*s)) for s in spans]
        saved = floor[:], top[:], left[:]
        for at in sorted(range(len(groups)), key=lambda g: slack[g]):
            if not self._solve(groups[at]):
                floor[:], top[:], left[:] = saved
                return False
        return True

    def _fits(self, height: int) -> bool:
        if height <= self.capacity:
            return True
        self.needed = min(self.needed, height)
        return False

    def _count(self) -> None:
        self.visited += 1
        if self.visited > self.nodes or time.monotonic() > self.deadline:
            raise OutOfBudget


Rank = Callable[[Problem], list[tuple[int, int]]]

PREFERENCES: dict[str, Rank] = {
    "lifetime": lambda p: [(a - b, -s) for a, b, s in zip(p.start, p.stop, p.size, strict=True)],
    "size": lambda p: [(-s, a - b) for a, b, s in zip(p.start, p.stop, p.size, strict=True)],
    "area": lambda p: [(s * (a - b), -s) for a, b, s in zip(p.start, p.stop, p.size, strict=True)],
}
"""What is tried first: name -> a rank per buffer, the least first."""


@contextmanager
def _deep(buffers: int) -> Generator[None]:
    """Allow for the recursion: a placement and many rises of the floor per buffer."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 100 * buffers + 10_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
