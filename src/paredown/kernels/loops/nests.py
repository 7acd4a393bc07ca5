"""One scheduled stage as statements: its loops, its accumulators, the limits of uneven splits.

Loops outside the first reduced one run over outputs; from there inwards all data loops together
are a tile, accumulated in a local array and written once (a scalar where the tile is one element).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from paredown.errors import InputError
from paredown.kernels.loops import compute
from paredown.kernels.loops.compute import ACCUMULATED, COMBINE, Stage, Tensor
from paredown.kernels.loops.expr import Const, Expr, Load, Var, names, rebuild, substitute
from paredown.kernels.loops.schedule import Leaf, Loops
from paredown.kernels.loops.stmt import (
    BUILT_IN,
    Allocate,
    Assign,
    Body,
    Declare,
    Store,
    guarded,
    loop,
    store,
)

TILE = 4096
"""The largest local array of accumulators."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a buffer that holds it without its first ``dropped`` axes."""

    tensor: Tensor
    buffer: str
    dropped: int = 0

    @property
    def size(self) -> int:
        """Elements of the buffer."""
        return prod(self.tensor.shape[self.dropped :])

    def flat(self, index: Sequence[Expr]) -> Expr:
        """The place in the buffer of an element, the last axis densest."""
        return flat(index[self.dropped :], self.tensor.shape[self.dropped :])


def flat(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """A row-major place; 0 of a scalar."""
    at: Expr = Const(0)
    for i, n in zip(index, shape, strict=True):
        at = at * n + i
    return at


class Nest:
    """The loops of one stage below ``depth`` shared ones, bound ones taken as given."""

    def __init__(
        self, stage: Stage, loops: Loops, depth: int, places: dict[str, Place], guards: list[Expr]
    ) -> None:
        """``guards`` are further conditions under which the stage's elements are computed."""
        self.stage, self.loops, self.places = stage, loops, places
        shared = {leaf.name: Var(f"g{n}") for n, leaf in enumerate(loops.leaves[:depth])}
        bound = {x.name: Var(x.kind) for x in loops.leaves if x.kind in BUILT_IN}
        self.given: dict[str, Expr] = {**shared, **bound}
        self.leaves = [x for x in loops.leaves if x.name not in self.given]
        reduced = {x.name for x in loops.leaves if x.reduce}
        limits = list(loops.limits.values())
        self.data = [*guards, *(self.index(e) for e in limits if not names(e) & reduced)]
        self.over = [self.index(e) for e in limits if names(e) & reduced]
        _check(stage, self.leaves)

    def index(self, e: Expr) -> Expr:
        """An expression of leaves in the kernel's variables."""
        return substitute(e, self.given)

    def value(self, e: Expr) -> Expr:
        """An expression of axes in the kernel's variables, elements at their places."""

        def element(x: Expr) -> Expr | None:
            if not isinstance(x, Load):
                return None
            return self.element(x, [rebuild(i, element) for i in x.index])

        at = {a: self.index(i) for a, i in self.loops.axes.items()}
        return rebuild(substitute(e, at), element)

    def element(self, load: Load, index: list[Expr]) -> Expr:
        """An element of a tensor: a cache reads it elsewhere."""
        place = self.places[load.buffer]
        return Load(place.buffer, (place.flat(index),))

    def body(self) -> Body:
        """All of the stage's statements."""
        s, leaves = self.stage, self.leaves
        place = self.places[s.name]
        own = place.flat([self.index(self.loops.axes[a]) for a in s.axes])
        if s.combine is None:
            whole = Store(place.buffer, own, self.value(s.value))
            return self.nest(leaves, (whole,), self.data)
        first = next((n for n, x in enumerate(leaves) if x.reduce), len(leaves))
        outer, rest = leaves[:first], leaves[first:]
        tile = [x for x in rest if not x.reduce]
        size = prod(x.extent for x in tile)
        if size > TILE:
            raise InputError(f"{s.name}: a tile of {size} accumulators is over {TILE}")
        acc = f"{ACCUMULATED}_{s.name}"
        start = Const(COMBINE[s.combine][1])
        value = self.value(s.value)
        end = self.value(s.finish)
        if tile:
            at = flat([Var(x.name) for x in tile], [x.extent for x in tile])
            kept: Expr = Load(acc, (at,))
            made: Body = (Allocate(acc, "float", size), *self.nest(tile, (store(acc, at, start),)))
            step: Body = (store(acc, at, compute.combined(s, kept, value)),)
        else:
            kept = Var(acc)
            made = (Declare(acc, "float", start),)
            step = (Assign(acc, compute.combined(s, kept, value)),)
        written = Store(place.buffer, own, substitute(end, {ACCUMULATED: kept}))
        return self.nest(
            outer,
            (*made, *self.nest(rest, step, [*self.data, *self.over]),
             *self.nest(tile, (written,), self.data)),
        )  # fmt: skip

    def nest(self, leaves: Sequence[Leaf], body: Body, guards: Sequence[Expr] = ()) -> Body:
        """Loops around statements, every guard as far out as its variables allow."""
        left = list(guards)
        for leaf in reversed(leaves):
            fetches = self.fetches(leaf)
            here = [g for g in left if fetches or leaf.name in names(g)]
            left = [g for g in left if g not in here]
            body = guarded(here, body)
            if fetches:
                body = self.fetched(leaf, body)
            body = loop(leaf.name, leaf.extent, body, leaf.kind)
        return guarded(left, body)

    def fetches(self, leaf: Leaf) -> bool:
        """Whether every turn of a loop begins with all threads fetching a cache."""
        return False

    def fetched(self, leaf: Leaf, body: Body) -> Body:
        """A turn with its fetches: none here."""
        return body


def _check(stage: Stage, leaves: list[Leaf]) -> None:
    reduced = [n for n, x in enumerate(leaves) if x.reduce]
    first = reduced[0] if reduced else len(leaves)
    for n, leaf in enumerate(leaves):
        if leaf.kind == "vectorize":
            if n != len(leaves) - 1:
                raise InputError(f"{stage.name}: vectorized loop {leaf.name} is not the innermost")
            if leaf.reduce and any(not x.reduce for x in leaves[first:]):
                raise InputError(f"{stage.name}: {leaf.name} reduces a whole tile of elements")
        if leaf.kind == "parallel" and n > first:
            raise InputError(f"{stage.name}: parallel loop {leaf.name} is inside a reduction")
