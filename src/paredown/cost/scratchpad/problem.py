"""Operators on a machine with one scratchpad: what a plan is, and a replay that checks and counts.

COSMA (Li, Gupta, Malik 2023, arXiv:2311.18246): operator order, places in the scratchpad, and which
tensors leave it and come back when. Weights are used by one operator each; they are streamed and
take no place here, so what is counted is activations (a deviation that makes pads smaller).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from paredown.cost.arena.graphs import dag
from paredown.cost.arena.problem import Buffer, peak_step
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph


@dataclass(frozen=True)
class Step:
    """One operator: the tensors it reads and the one it makes. All are in the pad as it runs."""

    name: str
    reads: frozenset[int]
    makes: int


@dataclass(frozen=True)
class Task:
    """Operators in a valid order; ``size`` in bytes by tensor.

    ``given`` tensors start in host memory, ``wanted`` ones must end there; both are compulsory
    traffic, once. ``resident`` ones start in the pad and have no copy in host memory.
    """

    steps: tuple[Step, ...]
    size: Mapping[int, int]
    given: frozenset[int]
    wanted: frozenset[int]
    resident: frozenset[int] = frozenset()

    @cached_property
    def makers(self) -> dict[int, int]:
        """Tensor -> the operator that makes it."""
        return {s.makes: i for i, s in enumerate(self.steps)}

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """Tensor -> the operators that read it."""
        found: dict[int, list[int]] = {x: [] for x in self.size}
        for i, s in enumerate(self.steps):
            for x in s.reads:
                found[x].append(i)
        return found

    @property
    def compulsory(self) -> int:
        """Bytes that every plan moves: what is given once in, what is wanted once out."""
        used = [x for x in self.given if self.users[x]]
        return sum(self.size[x] for x in used) + sum(self.size[x] for x in self.wanted)

    @property
    def least(self) -> int:
        """The smallest pad that can run every operator: all that it touches."""
        return max(sum(self.size[x] for x in {*s.reads, s.makes}) for s in self.steps)

    def touching(self, x: int) -> list[int]:
        """The operators that read a tensor or make it."""
        return [*self.users[x], *([self.makers[x]] if x in self.makers else [])]

    def spans(self) -> list[tuple[int, int, int]]:
        """``(tensor, first, last)`` step that it is needed at in the given order."""
        return [
            (x, 0 if x in self.resident else min(steps), max(steps))
            for x in self.size
            if (steps := self.touching(x))
        ]

    def peak(self) -> int:
        """The pad with which the given order needs no traffic but the compulsory one."""
        return peak_step(buffers(self, self.spans()))[1]

    def demand(self, capacity: int) -> None:
        """Raises ``NotApplicable`` where an operator touches more than a pad of ``capacity``."""
        if self.least > capacity:
            raise NotApplicable(
                f"an operator touches {self.least:,} B, more than the scratchpad of {capacity:,} B"
            )


@dataclass(frozen=True)
class Stay:
    """A tensor in the pad from before step ``first`` through step ``last``, at ``offset``."""

    tensor: int
    first: int
    last: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """An order of operators, the stays of tensors in the pad, and after which step each is written.

    ``traffic`` in bytes as the planner counted it; ``bound`` a proven lower bound of every plan (of
    `divide`: of every plan that keeps the tensors at its cuts).
    """

    order: tuple[int, ...]
    stays: tuple[Stay, ...]
    writes: Mapping[int, int]
    traffic: int
    bound: int
    how: str

    @property
    def optimal(self) -> bool:
        """Whether none of the plans that ``bound`` holds for moves fewer bytes."""
        return self.traffic == self.bound


def replay(task: Task, plan: Plan, capacity: int) -> int:
    """Run a plan step by step and count the bytes it moves. Raises ``InputError`` where it breaks.

    Knows nothing of how plans are made: order, presence, host copies, places and capacity are all
    checked here.
    """
    if sorted(plan.order) != list(range(len(task.steps))):
        raise InputError("the order does not hold every operator once")
    at = {o: t for t, o in enumerate(plan.order)}
    moved = 0
    for x, t in plan.writes.items():
        if not any(s.tensor == x and s.first <= t <= s.last for s in plan.stays):
            raise InputError(f"tensor {x} is written after step {t} but is not in the pad")
        moved += task.size[x]
    for stay in plan.stays:
        x = stay.tensor
        made = at[task.makers[x]] if x in task.makers else -1
        starts = (x in task.makers and stay.first == made) or (
            x in task.resident and stay.first == 0
        )
        if not starts:
            written = plan.writes.get(x)
            if x not in task.given and (written is None or written >= stay.first):
                raise InputError(f"tensor {x} is fetched before step {stay.first}, not in memory")
            moved += task.size[x]
        if stay.first < made or stay.offset < 0 or stay.offset + task.size[x] > capacity:
            raise InputError(f"tensor {x} is in the pad too early, or outside of it")
    for t, o in enumerate(plan.order):
        here = [s for s in plan.stays if s.first <= t <= s.last]
        missing = {*task.steps[o].reads, task.steps[o].makes} - {s.tensor for s in here}
        if missing:
            raise InputError(f"step {t} ({task.steps[o].name}) lacks tensors {sorted(missing)}")
        spans = sorted((s.offset, s.offset + task.size[s.tensor]) for s in here)
        if any(a[1] > b[0] for a, b in pairwise(spans)):
            raise InputError(f"tensors overlap at step {t}")
    absent = [x for x in task.wanted if x not in plan.writes]
    if absent:
        raise InputError(f"results {absent} are never written")
    return moved


def buffers(task: Task, stays: Sequence[tuple[int, int, int]]) -> list[Buffer]:
    """Stays ``(tensor, first, last)`` as buffers of an arena, by position."""
    return [Buffer(str(i), a, b + 1, task.size[x]) for i, (x, a, b) in enumerate(stays)]


def task_of(graph: Graph) -> Task:
    """A captured run as a task: in-place operators make a new tensor, simple chains are one step.

    An operator that turns one activation, which nothing else reads, into another of its size is
    joined to the one that made it, as accelerators fuse norms and activations.
    """
    whole = dag(graph)
    now: dict[int, int] = {}
    size: dict[int, int] = {}
    steps: list[tuple[str, set[int], int]] = []
    storage = {t.id: t.storage for t in graph.tensors.values()}
    inputs = {s.id for s in graph.storages.values() if s.created < 0 and s.kind == "input"}
    for s in inputs:
        now[s] = len(size)
        size[now[s]] = graph.storages[s].nbytes
    given = frozenset(now.values())
    for node in graph.nodes:
        touched = {storage[t] for t in node.outputs} & whole.size.keys()
        writes = touched - ({storage[t] for t in node.inputs} if node.view else set())
        if not writes:
            continue
        reads = {now[storage[t]] for t in node.inputs if storage[t] in now}
        # Several results are made and kept together, as one tensor.
        made = len(size)
        size[made] = sum(whole.size[s] for s in writes)
        for s in writes:
            now[s] = made
        steps.append((node.module or node.op, reads, made))
    wanted = frozenset(now[s] for s in whole.kept if s in now)
    return _fused(steps, size, given, wanted)


def _fused(
    steps: list[tuple[str, set[int], int]],
    size: dict[int, int],
    given: frozenset[int],
    wanted: frozenset[int],
) -> Task:
    readers: dict[int, int] = {}
    for _, reads, _ in steps:
        for x in reads:
            readers[x] = readers.get(x, 0) + 1
    kept: list[tuple[str, set[int], int]] = []
    maker: dict[int, int] = {}
    for name, reads, makes in steps:
        only = next(iter(reads)) if len(reads) == 1 else None
        alone = only in maker and readers.get(only, 0) == 1 and only not in wanted
        if only is not None and alone and size[makes] == size[only]:
            at = maker[only]
            kept[at] = (kept[at][0], kept[at][1], makes)
            maker[makes] = at
            continue
        maker[makes] = len(kept)
        kept.append((name, reads, makes))
    live = wanted | {x for _, reads, _ in kept for x in reads}
    done = [s for s in kept if s[2] in live]
    used = {x for _, reads, makes in done for x in (*reads, makes)}
    return Task(
        tuple(Step(n, frozenset(r), m) for n, r, m in done),
        {x: size[x] for x in used},
        given & used,
        wanted,
    )
