"""Streaming pipelines: runs of operators as one, whose intermediates never leave the chip.

SambaNova SN40L (Prabhakar et al. 2024, arXiv:2405.07518, sections III and IV): an unfused run pays
the off-chip traffic of every operator's inputs, weights and outputs; a fused one those of its group
alone. Operators of a group work at the same time on successive tiles, the units shared among them.

A group is a run of successive operators. It needs on chip: of each product the smaller of its
weights and its other input (which stays while the rest streams), and two of ``TILES`` tiles of
every intermediate. Its time is the larger of products at the peak rate and traffic over bandwidth,
plus one call. Groups are chosen by dynamic programming: the least time.

Deviations: units are divided without remainder, so stages are always balanced; tiles of different
operators are taken to fit each other; sockets are one machine, their network left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paredown.cost.execution import WEIGHTS
from paredown.cost.tables import overhead, peak
from paredown.device.device import Device
from paredown.graph.graph import Graph, Node

TILES = 16
"""Tiles that an intermediate is streamed in; two of them are held."""
LONGEST = 256
"""Operators of a group at most."""


@dataclass(frozen=True)
class Operator:
    """One operator: bytes by storage that it reads and writes, of its weights, and what stays."""

    name: str
    reads: dict[int, int]
    writes: dict[int, int]
    weights: int
    held: int
    seconds: float
    """Of its arithmetic at the device's peak."""

    @property
    def traffic(self) -> int:
        """Bytes moved when it runs alone."""
        return sum(self.reads.values()) + sum(self.writes.values()) + self.weights


@dataclass(frozen=True)
class Group:
    """Operators ``first`` up to ``end``, run as one: bytes off chip, bytes on chip, seconds."""

    first: int
    end: int
    traffic: int
    on_chip: int
    seconds: float


@dataclass(frozen=True)
class Pipelines:
    """A run cut into groups, beside the same run operator by operator."""

    groups: tuple[Group, ...]
    alone: tuple[Group, ...]

    @property
    def seconds(self) -> float:
        """Time of the fused run."""
        return sum(g.seconds for g in self.groups)

    @property
    def unfused_seconds(self) -> float:
        """Time operator by operator."""
        return sum(g.seconds for g in self.alone)

    @property
    def traffic(self) -> int:
        """Bytes off chip of the fused run."""
        return sum(g.traffic for g in self.groups)

    @property
    def unfused_traffic(self) -> int:
        """Bytes off chip operator by operator."""
        return sum(g.traffic for g in self.alone)


def operators(graph: Graph, device: Device) -> list[Operator]:
    """The operators of a captured run as a streaming machine sees them; views are left out."""
    return [_operator(graph, node, device) for node in graph.work_nodes()]


def pipelines(graph: Graph, device: Device, backend: str = "native") -> Pipelines:
    """The fastest cut of a run into streaming groups on a device, and the run without fusion.

    On chip is the device's nearest level; off chip the smallest one that holds all weights. An
    operator that exceeds the chip runs alone.
    """
    ops = operators(graph, device)
    weights = sum(s.nbytes for s in graph.storages.values() if s.kind in WEIGHTS)
    chip = device.levels[0].capacity_bytes
    rest = [lv for lv in device.levels[1:] if lv.capacity_bytes >= weights]
    bytes_s = (rest[0] if rest else device.memory).read_bytes_s
    call = overhead(device, backend)
    wanted = {graph.tensors[t].storage for t in graph.outputs}
    return cut(ops, wanted, chip, bytes_s, call)


def cut(
    ops: Sequence[Operator], wanted: set[int], chip: int, bytes_s: float, call: float
) -> Pipelines:
    """The least time of operators in order: groups that fit ``chip`` bytes, or single operators.

    ``wanted`` storages leave the chip in any case.
    """
    last = {s: i for i, op in enumerate(ops) for s in op.reads}
    best: list[tuple[float, Group | None]] = [(0.0, None)]
    alone: list[Group] = []
    for end in range(1, len(ops) + 1):
        found: tuple[float, Group] | None = None
        for group in _ending(ops, end, last, wanted, chip, bytes_s, call):
            if group.first == end - 1:
                alone.append(group)
            total = best[group.first][0] + group.seconds
            if found is None or total < found[0]:
                found = (total, group)
        assert found is not None
        best.append(found)
    groups: list[Group] = []
    at = len(ops)
    while (group := best[at][1]) is not None:
        groups.append(group)
        at = group.first
    return Pipelines(tuple(reversed(groups)), tuple(alone))


def _ending(
    ops: Sequence[Operator],
    end: int,
    last: dict[int, int],
    wanted: set[int],
    chip: int,
    bytes_s: float,
    call: float,
) -> list[Group]:
    """Every group that ends before ``end``, the single operator first, while they fit the chip."""
    outside: dict[int, int] = {}
    inside: dict[int, int] = {}
    leaving: dict[int, int] = {}
    weights = held = 0
    work = 0.0
    found: list[Group] = []
    for first in range(end - 1, max(-1, end - 1 - LONGEST), -1):
        op = ops[first]
        for s, n in op.writes.items():
            if s in outside:
                inside[s] = max(n, outside.pop(s))
            if s in wanted or last.get(s, -1) >= end:
                leaving[s] = max(n, leaving.get(s, 0))
        for s, n in op.reads.items():
            outside[s] = max(n, outside.get(s, 0))
        weights, held, work = weights + op.weights, held + op.held, work + op.seconds
        on_chip = held + sum(-(-2 * n // TILES) for n in inside.values())
        alone = first == end - 1
        if on_chip > chip and not alone:
            break
        # By itself an operator pays all that it reads and writes, used later or not.
        moved = op.traffic if alone else weights + sum(outside.values()) + sum(leaving.values())
        found.append(Group(first, end, moved, on_chip, max(work, moved / bytes_s) + call))
    return found


def _operator(graph: Graph, node: Node, device: Device) -> Operator:
    reads: dict[int, int] = {}
    weights = 0
    for t in dict.fromkeys(node.inputs):
        tensor = graph.tensors[t]
        storage = graph.storages[tensor.storage]
        size = min(tensor.nbytes, storage.nbytes)
        if storage.kind in WEIGHTS:
            # An embedding reads the rows it looks up.
            weights += min(size, node.bytes_read)
        else:
            reads[storage.id] = max(size, reads.get(storage.id, 0))
    writes: dict[int, int] = {}
    for t in node.outputs:
        tensor = graph.tensors[t]
        writes[tensor.storage] = max(
            min(tensor.nbytes, graph.storages[tensor.storage].nbytes),
            writes.get(tensor.storage, 0),
        )
    held = 0
    if node.macs:
        streamed = sum(reads.values())
        held = min(weights, streamed) if weights else streamed - max(reads.values(), default=0)
    simple = node.work.get("elementwise", 0) + node.work.get("compare", 0)
    dtype = graph.tensors[node.outputs[0]].dtype if node.outputs else "float32"
    seconds = (node.macs or 0) / peak(device, dtype) + simple / device.elementwise_s
    return Operator(node.module or node.op, reads, writes, weights, held, seconds)
