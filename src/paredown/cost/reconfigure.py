"""FPGA designs that switch between running tasks one by one and streaming through several at once.

InTAR (He et al. 2025, arXiv:2502.08807): the cores of a design work together on one task, its
result stored, or are split among successive tasks whose intermediates stream and are never stored.
Which pattern holds when is fixed in the circuit; a switch takes tens of nanoseconds. Streaming
avoids results that exceed the on-chip memory, and stalls where a task needs all of its input first.

A plan cuts tasks, in order, into groups. A group's time is the larger of its arithmetic and its
traffic over the bandwidth; then what is alive at its end and exceeds the on-chip memory is written
and read again. One task alone has all cores. Several share them in whole cores, as well as any
split does: those between two tasks that need all of their input run at the same time, one such
phase after the other, the cores of the others idle (a stall). Cuts are the best, by dynamic
programming; the paper decides by rules on memory and problem size.

Deviations: weights are read once per run and overlap with arithmetic; a stream is filled by one of
``TILES`` tiles per stage; resources other than multipliers and memory are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise

from paredown.cost.execution import WEIGHTS
from paredown.cost.tables import peak
from paredown.device.device import Device
from paredown.errors import NotApplicable
from paredown.graph.graph import Graph

CORES = 8
TILES = 16
SWITCH_S = 20e-9
"""Of one change of pattern: 10 to 20 ns in the paper."""


@dataclass(frozen=True)
class Task:
    """Work of one task: ``makes`` bytes that later tasks read, up to task ``until``.

    ``outside`` are bytes from and to memory in any case: weights, inputs and results of the run.
    ``whole``: it starts when all of its input is there.
    """

    name: str
    macs: int
    makes: int
    until: int
    outside: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Machine:
    """Multiply-accumulates per second, on-chip bytes, bytes per second off chip, cores."""

    macs_s: float
    on_chip: int
    bytes_s: float
    cores: int = CORES


@dataclass(frozen=True)
class Plan:
    """Groups ``(first, end)`` of tasks, and seconds in all."""

    groups: tuple[tuple[int, int], ...]
    seconds: float


def machine(device: Device, dtype: str = "int16") -> Machine:
    """A device with on-chip memory nearest and the memory behind it."""
    if len(device.levels) < 2:
        raise NotApplicable(f"{device.name} states one memory level: nothing is on chip")
    return Machine(peak(device, dtype), device.levels[0].capacity_bytes,
                   device.levels[1].read_bytes_s)  # fmt: skip


def hybrid(tasks: Sequence[Task], where: Machine) -> Plan:
    """The fastest cut; never slower than `sequential` or `dataflow`, which are cuts too."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(tasks) + 1):
        starts = range(max(0, end - where.cores), end)
        best.append(min((best[i][0] + group_seconds(tasks, i, end, where), i) for i in starts))
    groups: list[tuple[int, int]] = []
    at = len(tasks)
    while at:
        groups.append((best[at][1], at))
        at = best[at][1]
    return Plan(tuple(reversed(groups)), best[-1][0])


def sequential(tasks: Sequence[Task], where: Machine) -> Plan:
    """One task after the other, each with all cores."""
    return plan_of(tasks, tuple((i, i + 1) for i in range(len(tasks))), where)


def dataflow(tasks: Sequence[Task], where: Machine) -> Plan:
    """All tasks at once; where there are more than cores, as few equal groups as cores allow."""
    count = -(-len(tasks) // where.cores)
    edges = [len(tasks) * i // count for i in range(count + 1)]
    return plan_of(tasks, tuple(pairwise(edges)), where)


def plan_of(tasks: Sequence[Task], groups: tuple[tuple[int, int], ...], where: Machine) -> Plan:
    """A given cut and its seconds."""
    return Plan(groups, sum(group_seconds(tasks, a, b, where) for a, b in groups))


def group_seconds(tasks: Sequence[Task], first: int, end: int, where: Machine) -> float:
    """Seconds of tasks ``first`` up to ``end`` as one group, the spill at its end included."""
    part = tasks[first:end]
    if len(part) == 1:
        work = part[0].macs / where.macs_s
    else:
        work = _shared(_phases(part), where.cores) * where.cores / where.macs_s
    outside = sum(t.outside for t in part)
    # What a task that waits for all of its input waits for is stored meanwhile.
    inside = max((t.makes for t, after in pairwise(part) if after.whole), default=0)
    alive = sum(t.makes for t in tasks[:end] if t.until >= end)
    spilled = max(0, inside - where.on_chip) + max(0, alive - where.on_chip)
    return max(work, outside / where.bytes_s) + 2 * spilled / where.bytes_s + SWITCH_S


def tasks_of(graph: Graph) -> list[Task]:
    """A captured run as tasks: a product each, with the operators up to the next one.

    A product of two activations (attention) needs all of its input first.
    """
    starts: list[int] = []
    nodes = list(graph.work_nodes())
    starts = [i for i, n in enumerate(nodes) if n.macs]
    if not starts:
        raise NotApplicable("the network has no products: nothing to place on cores")
    owner = {id(n): max(0, sum(s <= i for s in starts) - 1) for i, n in enumerate(nodes)}
    last: dict[int, int] = {}
    for n in nodes:
        for t in n.inputs:
            last[graph.tensors[t].storage] = owner[id(n)]
    made: dict[int, int] = {}
    for n in nodes:
        for t in n.outputs:
            made[graph.tensors[t].storage] = owner[id(n)]
    wanted = {graph.tensors[t].storage for t in graph.outputs}
    count = len(starts)
    macs, outside = [0] * count, [0] * count
    kept: list[dict[int, int]] = [{} for _ in range(count)]
    whole = [False] * count
    for n in nodes:
        at = owner[id(n)]
        macs[at] += n.macs or 0
        kinds = {graph.storages[graph.tensors[t].storage].kind for t in n.inputs}
        whole[at] |= bool(n.macs) and not kinds & WEIGHTS
        for t in dict.fromkeys(n.inputs):
            storage = graph.storages[graph.tensors[t].storage]
            if storage.kind in WEIGHTS or storage.kind == "input":
                outside[at] += min(graph.tensors[t].nbytes, storage.nbytes)
    for s, at in made.items():
        size = graph.storages[s].nbytes
        if s in wanted:
            outside[at] += size
        elif last.get(s, at) > at:
            kept[at][s] = size
    return [
        Task(
            nodes[starts[i]].module or nodes[starts[i]].op,
            macs[i],
            sum(kept[i].values()),
            max((last[s] for s in kept[i]), default=i),
            outside[i],
            whole[i],
        )
        for i in range(count)
    ]


def _phases(part: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Work of the tasks that stream into each other, cut where one needs all of its input."""
    phases: list[list[int]] = []
    for i, task in enumerate(part):
        if i == 0 or task.whole:
            phases.append([])
        phases[-1].append(task.macs)
    return tuple(tuple(p) for p in phases)


@cache
def _shared(phases: tuple[tuple[int, ...], ...], cores: int) -> float:
    """Work over cores of the slowest task of each phase, summed, by the best split of cores."""
    count = sum(len(p) for p in phases)
    best = float("inf")
    for cuts in combinations(range(1, cores), count - 1):
        edges = (0, *cuts, cores)
        at, total = 0, 0.0
        for phase in phases:
            slow = max(work / (edges[at + i + 1] - edges[at + i]) for i, work in enumerate(phase))
            total += slow * (1 + (len(phase) - 1) / TILES)
            at += len(phase)
        best = min(best, total)
    return best
