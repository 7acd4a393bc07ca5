"""Buffers with lifetimes and their places in one arena: the problem, its bound, and what is valid.

A buffer lives in steps ``lower <= t < upper``; two that live at the same step may not overlap in
memory. The smallest arena is the "dynamic storage allocation" of Garey & Johnson (SR2), NP-hard;
the most bytes alive at once is a lower bound that is often met.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import gcd
from typing import Literal

How = Literal["optimal", "bound", "no room"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """``size`` bytes that live in steps ``lower <= t < upper``."""

    id: str
    lower: int
    upper: int
    size: int


@dataclass(frozen=True)
class Placement:
    """Offsets in bytes by buffer id, and what is known of the smallest arena.

    ``height`` is the arena's size, ``bound`` a proven lower bound of every arena. ``how``:
    ``optimal`` where both are equal, ``bound`` where a smaller arena was neither found nor
    excluded, ``no room`` where the asked capacity is proven too small. ``proof`` says by what.
    """

    offsets: Mapping[str, int]
    height: int
    bound: int
    how: How
    proof: str
    greedy_height: int
    """Of greedy-by-size, for comparison."""
    load: int
    """The most bytes alive at once."""
    nodes: int = 0
    """Nodes that the exact search visited."""


@dataclass
class Problem:
    """Buffers with time cut into sections, one for each largest set of buffers alive at once.

    Buffer ``i`` covers sections ``start[i] <= k < stop[i]``; two buffers live at the same step
    exactly where they share a section.
    """

    buffers: Sequence[Buffer]
    start: list[int] = field(init=False)
    stop: list[int] = field(init=False)
    size: list[int] = field(init=False)
    sections: int = field(init=False)

    def __post_init__(self) -> None:
        # The buffers alive form a maximal set at the last start before an end; steps between such
        # moments hold subsets of these sets and bind nothing.
        events = sorted({(b.lower, 1) for b in self.buffers} | {(b.upper, 0) for b in self.buffers})
        times = [t for (t, begins), (_, more) in pairwise(events) if begins and not more]
        self.start = [bisect_left(times, b.lower) for b in self.buffers]
        self.stop = [bisect_left(times, b.upper) for b in self.buffers]
        self.size = [b.size for b in self.buffers]
        self.sections = len(times)

    @cached_property
    def loads(self) -> list[int]:
        """Bytes alive in each section."""
        loads = [0] * self.sections
        for i, size in enumerate(self.size):
            for k in range(self.start[i], self.stop[i]):
                loads[k] += size
        return loads

    @property
    def load(self) -> int:
        """The most bytes alive at once: no arena can be smaller."""
        return max(self.loads, default=0)

    @cached_property
    def grain(self) -> int:
        """The greatest common divisor of all sizes: every height worth trying is a multiple."""
        return gcd(*self.size) if self.size else 1

    @cached_property
    def beside(self) -> list[list[int]]:
        """The buffers that live together with each one."""
        order = sorted(range(len(self.size)), key=lambda i: self.start[i])
        found: list[list[int]] = [[] for _ in order]
        alive: list[int] = []
        for i in order:
            alive = [j for j in alive if self.stop[j] > self.start[i]]
            for j in alive:
                found[i].append(j)
                found[j].append(i)
            alive.append(i)
        return found

    def height(self, offsets: Sequence[int]) -> int:
        """The size of an arena with these offsets."""
        return max((o + s for o, s in zip(offsets, self.size, strict=True)), default=0)

    def parts(self) -> list[list[int]]:
        """Indices of buffers in groups that share no step: each is placed on its own."""
        groups: list[list[int]] = []
        reach = -1
        for i in sorted(range(len(self.size)), key=lambda i: self.start[i]):
            if self.start[i] >= reach:
                groups.append([])
            groups[-1].append(i)
            reach = max(reach, self.stop[i])
        return groups


def overlaps(buffers: Iterable[Buffer], offsets: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of buffers that live at the same step and share a byte; empty for a valid placement."""
    found: list[tuple[str, str]] = []
    alive: list[Buffer] = []
    for b in sorted(buffers, key=lambda b: b.lower):
        alive = [a for a in alive if a.upper > b.lower]
        at = offsets[b.id]
        for a in alive:
            there = offsets[a.id]
            if at < there + a.size and there < at + b.size:
                found.append((a.id, b.id))
        alive.append(b)
    return found


def peak_step(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """The first step at which most bytes are alive, and how many."""
    change: dict[int, int] = {}
    for b in buffers:
        change[b.lower] = change.get(b.lower, 0) + b.size
        change[b.upper] = change.get(b.upper, 0) - b.size
    live = most = step = 0
    for time in sorted(change):
        live += change[time]
        if live > most:
            most, step = live, time
    return step, most
