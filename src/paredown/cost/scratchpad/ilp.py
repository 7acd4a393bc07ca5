"""COSMA's integer program (arXiv:2311.18246, section III), solved by HiGHS, with places by search.

Binaries: operator ``o`` runs at step ``t``; tensor ``x`` is in the pad at step ``t``. Fetches and
writes follow from these and need no integrality. Places are not in the program: it bounds the bytes
alive, and the exact arena search says whether its stays have room; where they have none, what
could not be placed is excluded and the program is solved again (logic-based Benders cuts). So a
tensor may come back at another place; while it stays it does not move. The optimum is that of the
joint problem.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil, gcd, inf, isfinite
from typing import Any

from paredown.cost.arena import place
from paredown.cost.highs import Row, minimise
from paredown.cost.scratchpad.problem import Plan, Stay, Task, buffers

ROUNDS = 30
"""Times that stays without room are excluded before the search gives up."""
PLACE_S = 2.0
"""Seconds for the places of one candidate plan."""


def solve(task: Task, capacity: int, seconds: float = 30.0) -> Plan | None:
    """The plan of least traffic within ``capacity``, or None where none was found in ``seconds``.

    ``Plan.optimal`` says whether it is proven. Raises ``NotApplicable`` where an operator alone
    needs more than the pad.
    """
    task.demand(capacity)
    program = _Program(task, capacity)
    deadline = time.monotonic() + seconds
    bound = task.compulsory
    for _ in range(ROUNDS):
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        found, proven = program.solve(left)
        bound = max(bound, proven)
        if found is None:
            return None
        order, stays, writes, traffic = found
        placed = place(buffers(task, stays), capacity=capacity, seconds=PLACE_S)
        if placed.height <= capacity:
            at = (placed.offsets[str(i)] for i in range(len(stays)))
            done = tuple(Stay(*s, offset) for s, offset in zip(stays, at, strict=True))
            return Plan(order, done, writes, traffic, bound, "integer program")
        if placed.how != "no room":
            # Not placed, but not proven unplaceable either: what follows bounds nothing.
            program.proven = False
        program.exclude(stays)
    return None


Table = tuple[tuple[int, ...], list[tuple[int, int, int]], dict[int, int], int]


class _Program:
    """Variables: S[o,t] and R[x,t] (binary), F[x,t] fetched before t, W[x,t] written after t."""

    def __init__(self, task: Task, capacity: int) -> None:
        self.task, self.n = task, len(task.steps)
        self.tensors = sorted(task.size)
        self.proven = True
        self._floor = 0
        self.columns = 0
        self.cost: list[float] = []
        self.whole: list[int] = []
        self.rows: list[Row] = []
        early, late = self._windows()
        times = range(self.n)
        self.S = {
            (o, t): self._column(0, 1)
            for o in times for t in range(early[o], late[o] + 1)
        }  # fmt: skip
        self.R = {(x, t): self._column(0, 1) for x in self.tensors for t in times}
        self.F = {(x, t): self._column(task.size[x], 0) for x in self.tensors for t in times}
        self.W = {
            (x, t): self._column(task.size[x], 0)
            for x in self.tensors if x not in task.given for t in times
        }  # fmt: skip
        self._order()
        for x in self.tensors:
            self._presence(x)
        for t in times:
            self._row([(self.R[x, t], float(task.size[x])) for x in self.tensors], 0, capacity)

    def _column(self, cost: float, whole: int) -> int:
        self.cost.append(float(cost))
        self.whole.append(whole)
        self.columns += 1
        return self.columns - 1

    def _row(self, entries: list[tuple[int, float]], low: float, high: float) -> None:
        self.rows.append(Row(entries, low, high))

    def _windows(self) -> tuple[list[int], list[int]]:
        """The earliest and latest step of each operator, by its ancestors and descendants."""
        task = self.task
        before: list[set[int]] = []
        for step in task.steps:
            mine: set[int] = set()
            for x in step.reads:
                if x in task.makers:
                    mine |= {task.makers[x]} | before[task.makers[x]]
            before.append(mine)
        after = [sum(o in b for b in before) for o in range(self.n)]
        return [len(b) for b in before], [self.n - 1 - a for a in after]

    def _ran(self, o: int, t: int) -> list[tuple[int, float]]:
        """The sum that is 1 once operator ``o`` ran at step ``t`` or before."""
        return [(self.S[o, s], 1.0) for s in range(t + 1) if (o, s) in self.S]

    def _order(self) -> None:
        task = self.task
        for o in range(self.n):
            self._row(self._ran(o, self.n - 1), 1, 1)
        for t in range(self.n):
            self._row([(self.S[o, t], 1.0) for o in range(self.n) if (o, t) in self.S], 1, 1)
            for o, step in enumerate(task.steps):
                for x in step.reads & task.makers.keys():
                    later = [(c, -v) for c, v in self._ran(o, t)]
                    if later:
                        self._row(self._ran(task.makers[x], t - 1) + later, 0, inf)

    def _presence(self, x: int) -> None:
        task = self.task
        touching = task.touching(x)
        for t in range(self.n):
            for o in touching:
                if (o, t) in self.S:
                    self._row([(self.R[x, t], 1.0), (self.S[o, t], -1.0)], 0, inf)
            came = [(self.F[x, t], 1.0), (self.R[x, t], -1.0)]
            if t:
                came.append((self.R[x, t - 1], 1.0))
            if x in task.makers and (task.makers[x], t) in self.S:
                came.append((self.S[task.makers[x], t], 1.0))
            start = 1.0 if t == 0 and x in task.resident else 0.0
            self._row(came, -start, inf)
            if x not in task.given:
                written = [(self.W[x, s], 1.0) for s in range(t)]
                self._row([*written, (self.F[x, t], -1.0)], 0, inf)
                self._row([(self.R[x, t], 1.0), (self.W[x, t], -1.0)], 0, inf)
        if x not in task.given:
            low = 1 if x in task.wanted else 0
            self._row([(self.W[x, t], 1.0) for t in range(self.n)], low, 1)

    def exclude(self, stays: Sequence[tuple[int, int, int]]) -> None:
        """At least one of these residencies must go: together they have no room."""
        cells = [(self.R[x, t], 1.0) for x, a, b in stays for t in range(a, b + 1)]
        self._row(cells, 0, len(cells) - 1)

    def solve(self, seconds: float) -> tuple[Table | None, int]:
        """The best plan but for places, and the bound that HiGHS proved."""
        # Sizes in units of their common divisor keep the numbers small.
        unit = gcd(*(self.task.size[x] for x in self.tensors))
        found = minimise(
            [c / unit for c in self.cost],
            self.whole,
            [0.0] * self.columns,
            [1.0] * self.columns,
            self.rows,
            seconds,
        )
        if self.proven and isfinite(found.bound):
            self._floor = max(self._floor, ceil(found.bound - 1e-4) * unit)
        if found.x is None:
            return None, self._floor
        return self._read(found.x > 0.5), self._floor

    def _read(self, on: Any) -> Table:
        order = tuple(
            next(o for o in range(self.n) if (o, t) in self.S and on[self.S[o, t]])
            for t in range(self.n)
        )
        return read_plan(
            self.task, order, {x: [bool(on[self.R[x, t]]) for t in range(self.n)] for x in
                               self.tensors}
        )  # fmt: skip


def read_plan(task: Task, order: tuple[int, ...], there: dict[int, list[bool]]) -> Table:
    """Stays, writes and traffic of an order and a table of residencies.

    Each tensor is written at the end of its first stay where it must come back or is wanted; stays
    that no step uses are shortened to their last use.
    """
    at = {o: t for t, o in enumerate(order)}
    stays: list[tuple[int, int, int]] = []
    writes: dict[int, int] = {}
    traffic = 0
    for x, cells in there.items():
        touched = {at[o] for o in task.touching(x)}
        made = at[task.makers[x]] if x in task.makers else -1
        runs: list[tuple[int, int]] = []
        for t, cell in enumerate(cells):
            if cell and runs and runs[-1][1] == t - 1:
                runs[-1] = (runs[-1][0], t)
            elif cell:
                runs.append((t, t))
        mine: list[tuple[int, int]] = []
        for first, last in runs:
            used = [t for t in touched if first <= t <= last]
            if first == 0 and x in task.resident and not used and touched:
                used = [0]
            if used:
                starts = first if x in task.resident and first == 0 else min(used)
                mine.append((starts, max(used)))
        for k, (first, last) in enumerate(mine):
            stays.append((x, first, last))
            at_hand = (first == made) or (x in task.resident and k == 0 and first == 0)
            traffic += 0 if at_hand else task.size[x]
        if x not in task.given and mine and (len(mine) > 1 or x in task.wanted):
            writes[x] = mine[0][1]
            traffic += task.size[x]
    return order, stays, writes, traffic
