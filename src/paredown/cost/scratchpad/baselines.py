"""What COSMA is compared with: a fixed order, a replacement policy, best-fit places.

Orders: breadth first and depth first over the graph, and the given one. A tensor that must enter
takes the smallest gap that holds it; where there is none, tensors leave by Belady's rule (the next
use furthest away) or least recently used, until there is one. One that has no copy in host memory
and is needed again is written first. Where what the running operator touches is in the way
itself, everything leaves and comes back packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from paredown.cost.arena.greedy import gaps
from paredown.cost.scratchpad.problem import Plan, Stay, Task

Policy = Literal["belady", "lru"]
ORDERS = ("given", "breadth first", "depth first")
POLICIES: tuple[Policy, ...] = ("belady", "lru")


def order_of(task: Task, name: str) -> tuple[int, ...]:
    """An order by name: of the operators that are ready the first (BFS) or last (DFS) to be so."""
    if name == "given":
        return tuple(range(len(task.steps)))
    waiting = [len(s.reads & task.makers.keys()) for s in task.steps]
    ready = [i for i, n in enumerate(waiting) if not n]
    order: list[int] = []
    while ready:
        o = ready.pop(0 if name == "breadth first" else -1)
        order.append(o)
        for later in task.users[task.steps[o].makes]:
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)
    return tuple(order)


def plan(task: Task, capacity: int, order: Sequence[int], policy: Policy) -> Plan:
    """The plan of an order and a policy.

    Raises ``NotApplicable`` where an operator exceeds the pad.
    """
    task.demand(capacity)
    return _Pad(task, capacity, tuple(order), policy).run()


def every(task: Task, capacity: int) -> dict[str, Plan]:
    """All orders with both policies."""
    return {
        f"{name}, {policy}": plan(task, capacity, order_of(task, name), policy)
        for name in ORDERS
        for policy in POLICIES
    }


@dataclass
class _Pad:
    task: Task
    capacity: int
    order: tuple[int, ...]
    policy: Policy
    inside: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Tensor -> (offset, step since which it is there)."""
    used: dict[int, int] = field(default_factory=dict)
    stays: list[Stay] = field(default_factory=list)
    writes: dict[int, int] = field(default_factory=dict)
    moved: int = 0

    def run(self) -> Plan:
        task, at = self.task, {o: t for t, o in enumerate(self.order)}
        self.uses = {x: sorted(at[o] for o in users) for x, users in task.users.items()}
        for x in task.resident:
            self._enter(x, 0, set())
        for t, o in enumerate(self.order):
            step = task.steps[o]
            need = [*sorted(step.reads, key=lambda x: -task.size[x]), step.makes]
            for x in need:
                if x not in self.inside:
                    self._enter(x, t, set(need))
                    if x in step.reads:
                        self.moved += task.size[x]
                self.used[x] = t
            for x in list(self.inside):
                if x in task.wanted and x not in self.writes:
                    self._write(x, t)
                if not any(u > t for u in self.uses[x]):
                    self._leave(x, t)
        return Plan(self.order, tuple(self.stays), self.writes, self.moved, task.compulsory, "list")

    def _write(self, x: int, t: int) -> None:
        self.writes[x] = t
        self.moved += self.task.size[x]

    def _leave(self, x: int, t: int) -> None:
        """Drop a tensor after step ``t``; written first if it is needed again and has no copy."""
        offset, since = self.inside.pop(x)
        again = any(u > t for u in self.uses[x])
        if again and x not in self.task.given and x not in self.writes:
            self._write(x, t)
        self.stays.append(Stay(x, since, t, offset))

    def _enter(self, x: int, t: int, pinned: set[int]) -> None:
        while True:
            offset = self._gap(self.task.size[x])
            if offset is not None:
                self.inside[x] = (offset, t)
                return
            free = [y for y in self.inside if y not in pinned]
            if free:
                self._evict(max(free, key=lambda y: self._worth(y, t)), t)
            else:
                self._pack(t)

    def _worth(self, y: int, t: int) -> int:
        """What leaves first."""
        if self.policy == "lru":
            return -self.used.get(y, -1)
        return next((u for u in self.uses[y] if u >= t), len(self.order))

    def _evict(self, y: int, t: int) -> None:
        if self.inside[y][1] == t:
            # It came for this very step and goes again: as if it had not come.
            del self.inside[y]
            self.moved -= self.task.size[y]
            return
        self._leave(y, t - 1)

    def _pack(self, t: int) -> None:
        """Everything that is there for this step leaves and comes back, packed from below."""
        at = 0
        for y, (_, since) in list(self.inside.items()):
            if since < t:
                self._leave(y, t - 1)
                self.moved += self.task.size[y]
            self.inside[y] = (at, t)
            at += self.task.size[y]

    def _gap(self, size: int) -> int | None:
        """The smallest gap that holds ``size`` bytes."""
        taken = ((o, o + self.task.size[y]) for y, (o, _) in self.inside.items())
        found = min(gaps(taken, size, self.capacity), default=None)
        return None if found is None else found[1]
