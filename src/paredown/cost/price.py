"""The price of a graph on a device: per-operator time by a roofline with overheads, and totals.

Time of an operator = max(arithmetic, data movement) + call overhead. Arithmetic runs at the peak of
its dtype times an efficiency by kind; activations move at the bandwidth of the smallest memory
level that holds them, weights at that of the level that holds all weights, since a run passes over
all of them. An operator that not every input needs counts by the share that does. Waterline and
efficiency gap follow convfirst (On the Efficiency of Convolutional Neural Networks, 2024, sections
3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import hypot
from typing import Literal

from paredown import figure
from paredown.cost import tabulate
from paredown.cost.describe import describe
from paredown.cost.execution import WEIGHTS, Run, plan
from paredown.cost.learned import Glue, times
from paredown.cost.tables import (
    COMPILED,
    TRANSCENDENTAL,
    VIEW_OVERHEAD,
    efficiency,
    overhead,
    peak,
)
from paredown.device.device import Device, Level
from paredown.figure import Figure
from paredown.graph.graph import Graph
from paredown.graph.liveness import Liveness, liveness
from paredown.result import MemoryPoint, ModuleRow, OperatorRow

Bound = Literal["compute", "memory", "overhead", "unknown"]


@dataclass(frozen=True, slots=True)
class Cost:
    """One operator's predicted time in seconds, and its parts.

    ``ideal_s`` is multiply-accumulates over the peak (t* of convfirst); ``floor_s`` also honours
    the bandwidth of the last memory level.
    """

    run: Run
    compute_s: float
    memory_s: float
    overhead_s: float
    ideal_s: float
    floor_s: float
    bound: Bound
    simple_s: float = 0.0
    """Pointwise arithmetic, part of ``compute_s``."""
    near_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Weights, activations read and results written, if they lay in the nearest level."""
    weights_s: float = 0.0
    """Weights where they lie, part of ``memory_s``."""
    learned_s: float | None = None
    """The time by learned utilisation, where a deep calibration has it."""
    error: float | None = None
    """Its typical relative error, on operators left out."""

    @property
    def seconds(self) -> float:
        """Predicted time."""
        if self.learned_s is not None:
            return self.learned_s
        return max(self.compute_s, self.memory_s) + self.overhead_s


def price(
    graph: Graph,
    device: Device,
    *,
    backend: str = "eager",
    unrealised: frozenset[str] = frozenset(),
) -> Priced:
    """Price every operator of a captured graph on a device under a backend.

    ``unrealised`` are modules whose integers a real executable did not run as such: they are
    priced in floats, with their numbers unpacked in every run.
    """
    weights = _weights(graph)
    runs = plan(graph, backend, unrealised)
    costs = [_cost(run, device, backend, weights) for run in runs]
    if device.learned is not None and backend in device.learned.backends():
        costs = _learned(costs, graph, device, backend)
    return Priced(graph, device, backend, costs)


CALL_S = 1e-6
FRESH_BYTES = 32 << 20
"""Results above this are new pages in every run: allocators give them back (glibc's largest)."""
FRESH_BYTES_S = 1e10


def parts_of(run: Run, graph: Graph, device: Device, backend: str) -> tuple[float, ...]:
    """The parts of an operator's analytical time (`parts`), in s."""
    return parts(_cost(run, device, backend, _weights(graph)))


def parts(cost: Cost) -> tuple[float, ...]:
    """What learned utilisation weighs, in s.

    Arithmetic at the peak; pointwise arithmetic; weights, activations read and results written at
    the bandwidth of the nearest level; what activations take more where they lie; what weights take
    more there than the arithmetic that hides them; fresh pages; 1 us for each call.
    """
    share = cost.run.node.share
    weights, read, written = cost.near_s
    far = max(cost.memory_s - cost.weights_s - read - written, 0.0)
    waits = max(cost.weights_s - max(weights, cost.ideal_s), 0.0)
    fresh = cost.run.written / FRESH_BYTES_S if cost.run.written > FRESH_BYTES else 0.0
    call = CALL_S if cost.run.called else 0.0
    return (
        cost.ideal_s, cost.simple_s, weights, read, written, far, waits, share * fresh, share * call
    )  # fmt: skip


def _learned(costs: list[Cost], graph: Graph, device: Device, backend: str) -> list[Cost]:
    """The same costs with learned times where an operator's group was timed."""
    assert device.learned is not None
    asked = [describe(c.run, graph) if c.run.called and not c.run.folded else None for c in costs]
    glue = Glue.of(device.learned, backend)
    known = times(device.learned, backend, asked, [parts(c) for c in costs])
    made: list[Cost] = []
    for cost, found in zip(costs, known, strict=True):
        if found is None:
            made.append(cost)
            continue
        taken = max(glue.beside(found), cost.ideal_s) + glue.call * cost.run.node.share
        made.append(replace(cost, learned_s=taken, error=found.error))
    return made


def _weights(graph: Graph) -> int:
    """Bytes of everything that was there before the run, inputs left out."""
    return sum(s.nbytes for s in graph.storages.values() if s.kind in WEIGHTS)


_INSIDE = frozenset({"t", "_unsafe_view", "detach", "alias", "expand", "unsafe_split"})
"""Views that an operator makes of its own operands: their cost is in the operator's."""


def views(graph: Graph) -> int:
    """Views that are calls of their own in eager."""
    return sum(n.view and n.op.partition("::")[2] not in _INSIDE for n in graph.nodes)


def level_for(device: Device, nbytes: int) -> Level:
    """The smallest memory level that holds ``nbytes``, the last one when none does."""
    return next((lv for lv in device.levels if lv.capacity_bytes >= nbytes), device.memory)


def _cost(run: Run, device: Device, backend: str, weights: int) -> Cost:
    node, work, share = run.node, run.node.work, run.node.share
    rate = peak(device, run.dtype)
    macs = 0 if run.folded else (node.macs or 0) * share
    reached = efficiency(device, backend, run.kind, run.dtype)
    simple = 0.0
    if not run.folded:
        simple = work.get("elementwise", 0) + work.get("compare", 0)
        simple += TRANSCENDENTAL * work.get("transcendental", 0)
    pointwise = share * simple / device.elementwise_s
    compute = macs / (rate * reached) + pointwise
    near = level_for(device, run.read + run.written)
    held = run.weight_bytes / level_for(device, weights).read_bytes_s
    memory = held + run.read / near.read_bytes_s
    memory += run.written / (near.write_bytes_s or near.read_bytes_s)
    memory *= share
    first = device.levels[0]
    nearest = (
        share * run.weight_bytes / first.read_bytes_s,
        share * run.read / first.read_bytes_s,
        share * run.written / (first.write_bytes_s or first.read_bytes_s),
    )
    call = share * overhead(device, backend) if run.called else 0.0
    every = share * (run.weight_bytes + run.read + run.written)
    ideal = macs / rate
    floor = max(ideal, every / device.memory.read_bytes_s)
    bound: Bound = "compute" if compute >= memory else "memory"
    if call > max(compute, memory):
        bound = "overhead"
    shown = bound if node.priced else "unknown"
    return Cost(run, compute, memory, call, ideal, floor, shown, pointwise, nearest, share * held)


@dataclass
class Priced:
    """A graph with prices. Totals are Figures; rows are made by `cost.tabulate`."""

    graph: Graph
    device: Device
    backend: str
    costs: list[Cost]

    @cached_property
    def lifetimes(self) -> Liveness:
        """Liveness of the captured run, without what this backend folds away."""
        gone = {t for c in self.costs if c.run.folded for t in c.run.node.outputs}
        threads = self.device.threads if self.backend == "eager" else None
        folded = {self.graph.tensors[t].storage for t in gone}
        return liveness(self.graph, without=folded, eager_threads=threads)

    @property
    def seconds(self) -> float:
        """Predicted time of one run."""
        start = self.device.overhead_s.get(f"{self.backend}/run", 0.0)
        return start + self._views + sum(c.seconds for c in self.costs)

    @property
    def _views(self) -> float:
        """What views cost: nothing in compiled backends, which have none."""
        if self.backend in COMPILED:
            return 0.0
        known = self.device.learned.glue_s if self.device.learned is not None else {}
        if f"{self.backend}/view" in known:
            return views(self.graph) * known[f"{self.backend}/view"]
        count = len(self.graph.nodes) - len(self.costs)
        return count * VIEW_OVERHEAD * overhead(self.device, self.backend)

    @property
    def error(self) -> float | None:
        """The relative error that the learned curves state of the sum; None where none was used.

        Operators of one kind err alike, kinds of their own accord: sums within a kind, root of
        squares over kinds. What is not learned stands outside.
        """
        by_kind: dict[str, float] = {}
        for c in self.costs:
            if c.learned_s is not None and c.error is not None:
                by_kind[c.run.kind] = by_kind.get(c.run.kind, 0.0) + c.learned_s * c.error
        return hypot(*by_kind.values()) / self.seconds if by_kind else None

    @property
    def latency(self) -> Figure:
        """Predicted seconds of one run; unpriced operators enter by their bytes, and are named.

        With learned utilisation ``spread`` is what its stated error leaves open.
        """
        value, off = self.seconds, self.error
        told = figure.predicted(value, "s", reason=self._incomplete("time is bytes alone"))
        if off is None:
            return told
        return told.model_copy(update={"spread": (value / (1 + off), value * (1 + off))})

    @property
    def macs(self) -> Figure:
        """Multiply-accumulates of one run, counted; a reason names operators left out."""
        return Figure(
            value=float(self.graph.macs),
            unit="MAC",
            how="counted",
            reason=self._incomplete("not counted"),
        )

    @property
    def params(self) -> Figure:
        """Parameters as `Graph.params` counts them."""
        return figure.counted(self.graph.params, "parameters")

    @property
    def peak_bytes(self) -> Figure:
        """Weights plus the high-water mark of the run's allocations, predicted from lifetimes."""
        return figure.predicted(float(self.lifetimes.peak_bytes), "B")

    @property
    def traffic(self) -> Figure:
        """Bytes from the last memory level: weights, inputs and outputs once, and what spills.

        An operator's activations spill when they exceed the last cache. Without caches all do.
        """
        cache = self.device.levels[-2].capacity_bytes if len(self.device.levels) > 1 else 0
        spilled = sum(
            c.run.read + c.run.written for c in self.costs if c.run.read + c.run.written > cache
        )
        outputs = {self.graph.tensors[t].storage for t in self.graph.outputs}
        out = sum(self.graph.storages[s].nbytes for s in outputs)
        weights = sum(c.run.weight_bytes for c in self.costs)
        once = sum(s.nbytes for s in self.graph.storages.values() if s.kind == "input")
        total = weights + spilled + (once + out if cache else 0)
        return figure.predicted(
            float(total), "B", reason="intermediates that fit the last cache stay"
        )

    @property
    def energy(self) -> Figure:
        """Joules of one run above idle, from the device's figures per MAC and per byte."""
        per_byte = self.device.memory.energy_j_per_byte
        if not self.device.energy_j_per_mac or per_byte is None:
            return figure.unavailable(
                "J", f"{self.device.name} states no energy per MAC and per byte of memory"
            )
        joules = per_byte * self.traffic.known()
        for c in self.costs:
            per_mac = _energy_per_mac(self.device, c.run.dtype)
            joules += per_mac * (c.run.node.macs or 0) * c.run.node.share
            near = level_for(self.device, c.run.read + c.run.written)
            if near is not self.device.memory and near.energy_j_per_byte is not None:
                bytes_ = (c.run.read + c.run.written) * c.run.node.share
                joules += near.energy_j_per_byte * bytes_
        return figure.predicted(
            joules, "J", reason="energy per MAC and byte; idle and control left out"
        )

    def operators(self, measured: dict[int, float] | None = None) -> list[OperatorRow]:
        """One row per operator; ``measured`` maps node indices to self times in seconds."""
        return tabulate.operators(self, measured)

    def modules(self, measured: dict[int, float] | None = None) -> list[ModuleRow]:
        """One row per module, children included."""
        return tabulate.modules(self, measured)

    def memory(self) -> list[MemoryPoint]:
        """Live bytes over the run, weights included."""
        return tabulate.memory(self)

    def waterline(self) -> dict[str, float]:
        """Waterline and efficiency of the whole run (convfirst).

        ``intensity``: MAC per byte where arithmetic and the last memory level balance, for the
        dtype that does most work. ``e_max`` = sum(t*) / sum(max(t*, bytes / bandwidth));
        ``e_predicted`` = sum(t*) / latency; ``ideal_s`` = sum(t*); ``gap_s`` = latency - sum(t*).
        """
        ideal = sum(c.ideal_s for c in self.costs)
        floor = sum(c.floor_s for c in self.costs)
        by_dtype: dict[str, int] = {}
        for c in self.costs:
            by_dtype[c.run.dtype] = by_dtype.get(c.run.dtype, 0) + (c.run.node.macs or 0)
        main = max(by_dtype, key=lambda d: by_dtype[d], default="float32")
        seconds = self.seconds
        return {
            "intensity": peak(self.device, main) / self.device.memory.read_bytes_s,
            "e_max": ideal / floor if floor else 0.0,
            "e_predicted": ideal / seconds if seconds else 0.0,
            "ideal_s": ideal,
            "latency_s": seconds,
            "gap_s": seconds - ideal,
        }

    def _incomplete(self, what: str) -> str | None:
        missing = self.graph.unpriced
        return f"{what} for {', '.join(missing[:5])}" if missing else None


def _energy_per_mac(device: Device, dtype: str) -> float:
    table = device.energy_j_per_mac
    return table.get(dtype, table.get("float32", max(table.values())))
