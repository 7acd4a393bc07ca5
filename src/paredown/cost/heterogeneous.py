"""Several networks on one chip of unlike accelerators: templates, assignment of layers, schedule.

NASAIC (Yang et al. 2020, arXiv:2002.04116), sections III and IV: each sub-accelerator is a template
with a share of the processing elements and of the bandwidth; layers of all networks are assigned to
them so that energy is least while latency keeps to its limit; layers of one network run in order,
one layer at a time per sub-accelerator. The templates are those of MAESTRO's style:

- ``shi`` (ShiDianNao): each element holds one output pixel of a tile of one feature map.
- ``dla`` (NVDLA): elements are channel pairs, up to 64 input channels each; weights stay.
- ``rs`` (Eyeriss): a column of elements per kernel row, output rows side by side, as MAESTRO maps
  it; channels are not spread over elements (DRACO's mapping in `cost.systolic` spreads them).

Deviations: cost is a formula of cycles and buffer accesses per template, not MAESTRO; energy per
access is Eyeriss's (`cost.reuse`); the memory outside the chip is counted in energy, not in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, isqrt
from typing import Literal

from paredown.cost.reuse import BUFFER, MEMORY, NEIGHBOUR, REGISTER, WORD
from paredown.cost.systolic import ROW_CHANNELS, ROW_FILTERS, Layer
from paredown.errors import InputError, NotApplicable

Template = Literal["shi", "dla", "rs"]
TEMPLATES: tuple[Template, ...] = ("shi", "dla", "rs")

CLOCK_HZ = 1e9
DLA_CHANNELS = 64
ELEMENT_AREA = 1.0
LANE_AREA = 16.0
"""Area of 1 GB/s of bandwidth, in multiply-accumulate units (assumed)."""


@dataclass(frozen=True)
class SubAccelerator:
    """A template with so many processing elements and bytes per second to the shared buffer."""

    template: Template
    elements: int
    bytes_s: float

    def __post_init__(self) -> None:
        if self.elements < 1 or self.bytes_s <= 0:
            raise InputError(
                f"a sub-accelerator has elements and bandwidth, got {self.elements}, {self.bytes_s}"
            )

    @property
    def area(self) -> float:
        """Area in multiply-accumulate units."""
        return ELEMENT_AREA * self.elements + LANE_AREA * self.bytes_s / 1e9


@dataclass(frozen=True)
class LayerCost:
    """A layer on a sub-accelerator: seconds, and energy in multiply-accumulates."""

    seconds: float
    energy: float


def cycles_and_accesses(layer: Layer, sub: SubAccelerator) -> tuple[int, float]:
    """Cycles of computing, and numbers moved between the buffer and the elements."""
    kernel = layer.kernel[0] * layer.kernel[1]
    height, width = layer.out
    pairs = layer.batch * layer.groups
    outputs = pairs * layer.outputs * height * width
    if sub.template == "shi":
        high = min(max(1, isqrt(sub.elements)), height)
        wide = min(sub.elements // high, width)
        tiles = ceil(height / high) * ceil(width / wide)
        channels = pairs * layer.inputs * layer.outputs
        cycles = channels * tiles * kernel
        # A weight is sent to all; neighbours pass inputs on, so a tile reads its rim once.
        halo = (high + layer.kernel[0] - 1) * (wide + layer.kernel[1] - 1)
        return cycles, cycles + channels * tiles * halo + outputs
    if sub.template == "dla":
        deep = min(DLA_CHANNELS, sub.elements)
        filters = sub.elements // deep
        rounds, sets = ceil(layer.inputs / deep), ceil(layer.outputs / filters)
        cycles = pairs * sets * rounds * kernel * height * width
        weights = layer.groups * layer.inputs * layer.outputs * kernel
        # An input is sent to all filters; sums leave once per round of channels and kernel place.
        inputs = cycles * min(layer.inputs, deep)
        sums = 2 * outputs * rounds * kernel - outputs
        return cycles, weights + inputs + sums
    # A column of elements per kernel row: output rows lie side by side, channels follow in time.
    columns = max(1, sub.elements // layer.kernel[0])
    tall = ceil(layer.kernel[0] / sub.elements)
    cycles = pairs * layer.inputs * layer.outputs * width * layer.kernel[1]
    cycles *= ceil(height / columns) * tall
    macs = layer.macs
    # Along a diagonal an input row serves every kernel row; a row of weights stays for a row of
    # outputs; sums of a kernel's rows are added on the way, of four channels in the element.
    inputs = macs / (kernel * min(layer.outputs, ROW_FILTERS))
    weights = macs / (width * min(height, columns))
    sums = 2 * macs / (kernel * min(layer.inputs, ROW_CHANNELS)) - outputs
    return cycles, inputs + weights + max(sums, outputs)


@lru_cache(maxsize=65536)
def layer_cost(layer: Layer, sub: SubAccelerator) -> LayerCost:
    """A layer on a sub-accelerator: the longer of computing and moving; energy by access."""
    cycles, accesses = cycles_and_accesses(layer, sub)
    seconds = max(cycles / CLOCK_HZ, accesses * WORD / sub.bytes_s)
    memory = (layer.weight_bytes + layer.input_bytes + layer.output_bytes) / WORD
    per_mac = 1 + 4 * REGISTER + (NEIGHBOUR if sub.template != "dla" else 0)
    return LayerCost(seconds, layer.macs * per_mac + accesses * BUFFER + memory * MEMORY)


Chains = Sequence[Sequence[Layer]]
Where = tuple[tuple[int, ...], ...]
"""Per network and layer, the sub-accelerator it runs on."""


@dataclass(frozen=True)
class Slot:
    """One layer's place in a schedule: seconds from the start."""

    network: int
    layer: int
    sub: int
    start: float
    end: float


@dataclass(frozen=True)
class Mapping:
    """An assignment with its schedule."""

    where: Where
    slots: tuple[Slot, ...]
    energy: float

    @property
    def seconds(self) -> float:
        """When the last layer ends."""
        return max(s.end for s in self.slots)


def area(subs: Sequence[SubAccelerator]) -> float:
    """Area of a chip."""
    return sum(s.area for s in subs)


def within(subs: Sequence[SubAccelerator], elements: int, bytes_s: float) -> bool:
    """Whether the shares keep to what the chip has."""
    return (
        sum(s.elements for s in subs) <= elements and sum(s.bytes_s for s in subs) <= bytes_s + 1e-3
    )


def scheduled(chains: Chains, subs: Sequence[SubAccelerator], where: Where) -> Mapping:
    """List scheduling: of the layers that are next, the one that can start first, then the one
    with the most work behind it.

    Raises ``InputError`` for a chip of nothing or an assignment that does not fit the chains.
    """
    if not subs or [len(w) for w in where] != [len(c) for c in chains]:
        raise InputError("an assignment names a sub-accelerator for each layer of each network")
    return _scheduled(_table(chains, subs), len(subs), where)


def assigned(
    chains: Chains, subs: Sequence[SubAccelerator], latency: float = float("inf")
) -> Mapping:
    """The least energy that the heuristic finds within a latency; else its least latency.

    Starts are each layer where it costs least energy, each where it is fastest, and networks dealt
    round to the sub-accelerators. While a schedule is too long, the layer is moved that saves most
    seconds per energy; then single layers and pairs go back to where they cost less.
    """
    if not subs or not any(chains):
        raise InputError("a chip has sub-accelerators, and there are layers to run")
    search = _Search(_table(chains, subs), len(subs), latency)
    found = [search.repaired(w) for w in search.starts()]
    met = [w for w in found if search.seconds(w) <= latency]
    if not met:
        best = min(found, key=search.seconds)
    else:
        best = min((search.thrifty(w) for w in met), key=search.energy)
    return _scheduled(search.table, len(subs), best)


def exhaustive(
    chains: Chains, subs: Sequence[SubAccelerator], latency: float = float("inf")
) -> Mapping:
    """The least energy within a latency over every assignment and order; else the least latency.

    Raises ``NotApplicable`` for more than eight layers.
    """
    lengths = [len(c) for c in chains]
    if sum(lengths) > 8:
        raise NotApplicable(f"{sum(lengths)} layers are too many to try every schedule")
    table = _table(chains, subs)
    best: Mapping | None = None
    orders = list(_orders(lengths))
    for flat in product(range(len(subs)), repeat=sum(lengths)):
        ends = iter(flat)
        where = tuple(tuple(next(ends) for _ in range(n)) for n in lengths)
        for order in orders:
            found = _placed(table, len(subs), where, order)
            if best is None or _better(found, best, latency):
                best = found
    assert best is not None
    return best


def _better(a: Mapping, b: Mapping, latency: float) -> bool:
    met = a.seconds <= latency, b.seconds <= latency
    if met[0] != met[1]:
        return met[0]
    return a.energy < b.energy if met[0] else a.seconds < b.seconds


def _orders(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every interleaving of the chains, as networks in turn."""
    if not any(lengths):
        yield ()
    for n, count in enumerate(lengths):
        if count:
            rest = [c - (i == n) for i, c in enumerate(lengths)]
            for tail in _orders(rest):
                yield (n, *tail)


Table = list[list[list[LayerCost]]]
"""Costs by network, layer and sub-accelerator."""


def _table(chains: Chains, subs: Sequence[SubAccelerator]) -> Table:
    return [[[layer_cost(x, s) for s in subs] for x in c] for c in chains]


def _placed(table: Table, subs: int, where: Where, order: Sequence[int]) -> Mapping:
    """Layers as early as they can start, networks taking turns in this order."""
    at, ready, free = [0] * len(table), [0.0] * len(table), [0.0] * subs
    slots: list[Slot] = []
    energy = 0.0
    for n in order:
        i = at[n]
        sub = where[n][i]
        cost = table[n][i][sub]
        start = max(ready[n], free[sub])
        slots.append(Slot(n, i, sub, start, start + cost.seconds))
        ready[n] = free[sub] = start + cost.seconds
        energy += cost.energy
        at[n] += 1
    return Mapping(where, tuple(slots), energy)


def _scheduled(table: Table, subs: int, where: Where) -> Mapping:
    return _placed(table, subs, where, _order(table, subs, where)[1])


def _order(table: Table, subs: int, where: Where) -> tuple[float, list[int]]:
    """The list schedule's length and the networks in turn."""
    times = [[c[s].seconds for c, s in zip(t, w, strict=True)] 
             for t, w in zip(table, where, strict=True)]  # fmt: skip
    left = [sum(t) for t in times]
    at, ready, free = [0] * len(table), [0.0] * len(table), [0.0] * subs
    waiting = [n for n, t in enumerate(times) if t]
    order: list[int] = []
    while waiting:
        n = min(waiting, key=lambda n: (max(ready[n], free[where[n][at[n]]]), -left[n]))
        i = at[n]
        sub, seconds = where[n][i], times[n][i]
        ready[n] = free[sub] = max(ready[n], free[sub]) + seconds
        left[n] -= seconds
        at[n] = i + 1
        order.append(n)
        if at[n] == len(times[n]):
            waiting.remove(n)
    return max(ready), order


class _Search:
    """Local search over assignments; lengths of schedules are kept."""

    def __init__(self, table: Table, subs: int, latency: float) -> None:
        self.table, self.subs, self.latency = table, subs, latency
        self._known: dict[Where, float] = {}

    def seconds(self, where: Where) -> float:
        if where not in self._known:
            self._known[where] = _order(self.table, self.subs, where)[0]
        return self._known[where]

    def energy(self, where: Where) -> float:
        return sum(
            c[s].energy
            for t, w in zip(self.table, where, strict=True)
            for c, s in zip(t, w, strict=True)
        )

    def starts(self) -> list[Where]:
        every = range(self.subs)
        cheap = tuple(tuple(min(every, key=lambda s: c[s].energy) for c in t) for t in self.table)
        quick = tuple(tuple(min(every, key=lambda s: c[s].seconds) for c in t) for t in self.table)
        dealt = [
            tuple(((n + turn) % self.subs,) * len(t) for n, t in enumerate(self.table))
            for turn in every
        ]
        return list(dict.fromkeys([cheap, quick, *dealt]))

    def moves(self, where: Where) -> Iterator[Where]:
        """Every assignment that differs in one layer."""
        for n, chain in enumerate(where):
            for i, now in enumerate(chain):
                for s in range(self.subs):
                    if s != now:
                        changed = (*chain[:i], s, *chain[i + 1 :])
                        yield (*where[:n], changed, *where[n + 1 :])

    def repaired(self, where: Where) -> Where:
        """Move layers, most seconds saved per energy added first, until the latency is kept."""
        while (now := self.seconds(where)) > self.latency:
            shorter = [w for w in self.moves(where) if self.seconds(w) < now * (1 - 1e-12)]
            if not shorter:
                return where
            met = [w for w in shorter if self.seconds(w) <= self.latency]
            if met:
                return min(met, key=self.energy)
            spent = self.energy(where)
            gains = [
                ((now - self.seconds(w)) / max(self.energy(w) - spent, 1e-9), w) for w in shorter
            ]
            where = max(gains)[1]
        return where

    def thrifty(self, where: Where) -> Where:
        """Move single layers, or two at once, to where they cost less energy, within the limit."""
        while True:
            spent = self.energy(where)
            ones = [(e, w) for w in self.moves(where) if (e := self.energy(w)) < spent]
            kept = [(e, w) for e, w in ones if self.seconds(w) <= self.latency]
            if not kept:
                # A pair: one move that saves energy and breaks the limit, one that mends it.
                for _, first in sorted(ones)[:4]:
                    kept += [
                        (e, w)
                        for w in self.moves(first)
                        if (e := self.energy(w)) < spent and self.seconds(w) <= self.latency
                    ]
            if not kept:
                return where
            where = min(kept)[1]
