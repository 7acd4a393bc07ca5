"""Fetching part of a tensor to shared memory: what a block's threads read in one turn of a loop.

The part is the box of elements that all threads and all inner loops can reach from one turn; the
threads fetch it together, between two barriers, zeros where it leaves the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from paredown.errors import InputError
from paredown.kernels.loops.compute import Stage
from paredown.kernels.loops.expr import (
    Const,
    Expr,
    Load,
    Select,
    Var,
    affine,
    binary,
    substitute,
    walk,
)
from paredown.kernels.loops.nests import Nest, Place, flat
from paredown.kernels.loops.schedule import Leaf, Loops
from paredown.kernels.loops.stmt import (
    BUILT_IN,
    THREAD,
    Allocate,
    Body,
    Declare,
    If,
    Store,
    Sync,
    loop,
)


@dataclass(frozen=True)
class Box:
    """The elements ``base + [0, extents)`` of a tensor, kept in ``buffer``."""

    buffer: str
    base: tuple[Expr, ...]
    extents: tuple[int, ...]
    outside: tuple[tuple[bool, bool], ...]
    """Whether some turn's box leaves the tensor below and above, axis by axis."""


class CachedNest(Nest):
    """A nest that reads some tensors from shared memory. ``threads`` is the block's size."""

    def __init__(
        self,
        stage: Stage,
        loops: Loops,
        depth: int,
        places: dict[str, Place],
        guards: list[Expr],
        threads: tuple[int, int, int],
    ) -> None:
        super().__init__(stage, loops, depth, places, guards)
        self.threads = threads
        self.boxes = {t: self._box(t, leaf) for t, leaf in loops.caches}
        self._cached = False

    def body(self) -> Body:
        """The shared arrays, then the loops."""
        made = tuple(
            Allocate(b.buffer, "float", prod(b.extents), "shared") for b in self.boxes.values()
        )
        return (*made, *super().body())

    def value(self, e: Expr) -> Expr:
        """Only what is reduced reads the caches; its end comes after them."""
        self._cached = e is self.stage.value
        return super().value(e)

    def element(self, load: Load, index: list[Expr]) -> Expr:
        """An element of a box, or of the tensor where there is none."""
        box = self.boxes.get(load.buffer) if self._cached else None
        if box is None:
            return super().element(load, index)
        inside = [difference(i, b) for i, b in zip(index, box.base, strict=True)]
        return Load(box.buffer, (flat(inside, box.extents),))

    def fetches(self, leaf: Leaf) -> bool:
        """Whether a cache is filled at this loop."""
        return any(at == leaf.name for _, at in self.loops.caches)

    def fetched(self, leaf: Leaf, body: Body) -> Body:
        """Barrier, fetch, barrier, then the turn itself."""
        here = [t for t, at in self.loops.caches if at == leaf.name]
        return (Sync(), *(s for t in here for s in self._fetch(t)), Sync(), *body)

    def _fetch(self, tensor: str) -> Body:
        box, place = self.boxes[tensor], self.places[tensor]
        x, y, z = self.threads
        count, size = x * y * z, prod(box.extents)
        tx, ty, tz = (
            Const(0) if n == 1 else Var(t) for t, n in zip(THREAD, self.threads, strict=True)
        )
        thread = (tz * y + ty) * x + tx
        turn, at = f"f_{tensor}", Var(f"e_{tensor}")
        index: list[Expr] = []
        rest = 1
        for n in reversed(box.extents):
            within = at // rest
            index.insert(0, within if len(index) + 1 == len(box.extents) else within % n)
            rest *= n
        index = [b + i for b, i in zip(box.base, index, strict=True)]
        read: Expr = Load(place.buffer, (place.flat(index),))
        inside: Expr = Const(1)
        for i, (below, above), n in zip(index, box.outside, place.tensor.shape, strict=True):
            if below:
                inside = binary("&&", inside, i >= 0)
            if above:
                inside = binary("&&", inside, i < n)
        if not isinstance(inside, Const):
            read = Select(inside, read, Const(0.0))
        stored: Body = (Store(box.buffer, at, read),)
        if size % count:
            stored = (If(at < size, stored),)
        place_of = Declare(at.name, "int", Var(turn) * count + thread)
        return loop(turn, -(-size // count), (place_of, *stored))

    def _box(self, tensor: str, leaf: str) -> Box:
        s, loops = self.stage, self.loops
        found = {e.index for e in walk(s.value) if isinstance(e, Load) and e.buffer == tensor}
        if len(found) != 1 or self.places[tensor].dropped:
            raise InputError(f"{s.name}: {tensor} is read at several places, no one box is cached")
        order = [x.name for x in loops.leaves]
        free = {
            x.name: x.extent
            for x in loops.leaves
            if x.kind in THREAD
            or (x.kind not in BUILT_IN and order.index(x.name) > order.index(leaf))
        }
        every = {x.name: x.extent for x in loops.leaves}
        base: list[Expr] = []
        extents: list[int] = []
        outside: list[tuple[bool, bool]] = []
        for i, n in zip(next(iter(found)), self.places[tensor].tensor.shape, strict=True):
            line = affine(substitute(i, loops.axes))
            if line is None or any(c < 0 for c in line[1].values()):
                raise InputError(f"{s.name}: {tensor}'s index is no rising sum of loops")
            constant, terms = line
            fixed: Expr = Const(constant)
            low = high = constant
            for name, c in terms.items():
                if name not in free:
                    fixed = fixed + Var(name) * c
                    high += c * (every[name] - 1)
            extent = 1 + sum(c * (free[k] - 1) for k, c in terms.items() if k in free)
            base.append(self.index(fixed))
            extents.append(extent)
            outside.append((low < 0, high + extent > n))
        return Box(f"s_{tensor}", tuple(base), tuple(extents), tuple(outside))


def difference(a: Expr, b: Expr) -> Expr:
    """``a - b``, terms that are in both taken out."""
    one, other = affine(a), affine(b)
    if one is None or other is None:
        return a - b
    total: Expr = Const(0)
    for name in {**one[1], **other[1]}:
        times = one[1].get(name, 0) - other[1].get(name, 0)
        if times:
            total = total + Var(name) * times
    return total + (one[0] - other[0])
