"""Symbolic tensor dimensions: each is an axis made of atoms, so that a cut is followed through
reshapes.

An axis is a leaf (one atom), a product (outer x inner factors: heads x head size) or a sum
(segments one after the other: a concatenation). Leaves are refined in place as operators reveal
structure, and two axes that must agree are unified, so every tensor that shares an atom is cut at
the same indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import numpy as np


class Conflict(Exception):
    """Two axes that must agree cannot be split alike; whoever catches it freezes both."""


class Axis:
    """One dimension of ``size`` positions. ``frozen`` says why its atoms may not be cut."""

    __slots__ = ("frozen", "kind", "link", "parts", "size")

    def __init__(
        self,
        size: int,
        kind: Literal["leaf", "product", "sum"] = "leaf",
        parts: Sequence[Axis] = (),
        frozen: str | None = None,
    ) -> None:
        self.size, self.kind, self.parts = size, kind, list(parts)
        self.frozen = frozen
        self.link: Axis | None = None


def find(axis: Axis) -> Axis:
    """The axis that stands for this one after unification."""
    while axis.link is not None:
        axis = axis.link
    return axis


def product(parts: Sequence[Axis]) -> Axis:
    """Outer-to-inner product; factors of size 1 vanish."""
    flat = [f for p in parts for f in factors(p)]
    if len(flat) == 1:
        return flat[0]
    return Axis(prod(f.size for f in flat), "product", flat) if flat else Axis(1)


def total(parts: Sequence[Axis]) -> Axis:
    """Segments one after the other; empty ones vanish."""
    flat = [s for p in parts for s in segments(p) if s.size]
    if len(flat) == 1:
        return flat[0]
    return Axis(sum(s.size for s in flat), "sum", flat)


def factors(axis: Axis) -> list[Axis]:
    """The factors of an axis, outermost first; none for size 1."""
    axis = find(axis)
    if axis.size == 1:
        return []
    return [f for p in axis.parts for f in factors(p)] if axis.kind == "product" else [axis]


def segments(axis: Axis) -> list[Axis]:
    """The segments of an axis, first to last."""
    axis = find(axis)
    return [s for p in axis.parts for s in segments(p)] if axis.kind == "sum" else [axis]


def leaves(axis: Axis) -> Iterator[Axis]:
    """Every atom of an axis (repeats possible), size-1 atoms left out."""
    axis = find(axis)
    if axis.kind == "leaf":
        if axis.size > 1:
            yield axis
        return
    for p in axis.parts:
        yield from leaves(p)


def freeze(axis: Axis, reason: str) -> None:
    """Forbid cutting any atom of this axis; the first reason given stays."""
    for leaf in leaves(axis):
        leaf.frozen = leaf.frozen or reason


def _become(axis: Axis, kind: Literal["product", "sum"], parts: list[Axis]) -> None:
    """Refine a leaf or sum in place into parts of the same size."""
    reason = axis.frozen
    axis.kind, axis.parts = kind, parts
    if reason:
        freeze(axis, reason)


def unify(a: Axis, b: Axis) -> None:
    """Make two axes of one size the same; raises ``Conflict`` where their structures disagree."""
    a, b = find(a), find(b)
    if a is b or a.size == b.size == 1:
        return
    if a.size != b.size:
        raise Conflict(f"sizes {a.size} and {b.size} must agree")
    if a.kind != "leaf" and b.kind == "leaf":
        a, b = b, a
    if a.kind == "leaf":
        if any(leaf is a for leaf in leaves(b)):
            return
        a.link = b
        if a.frozen:
            freeze(b, a.frozen)
    elif a.kind == b.kind == "product":
        _align_factors(factors(a), factors(b))
    elif a.kind == b.kind == "sum":
        _align_segments(a, b)
    else:
        both = (a, b) if a.kind == "sum" else (b, a)
        _sum_as_product(both[0], factors(both[1]))


def _align_factors(fa: list[Axis], fb: list[Axis]) -> None:
    while fa and fb:
        x, y = fa[0], fb[0]
        if x.size == y.size:
            unify(x, y)
            fa, fb = fa[1:], fb[1:]
        elif x.size > y.size:
            fa = split_front(x, y.size) + fa[1:]
        else:
            fb = split_front(y, x.size) + fb[1:]


def _align_segments(a: Axis, b: Axis) -> None:
    sa, sb = segments(a), segments(b)
    cuts = sorted({*np.cumsum([s.size for s in sa]), *np.cumsum([s.size for s in sb])})
    for lo, hi in pairwise([0, *(int(c) for c in cuts)]):
        unify(cut(a, lo, hi), cut(b, lo, hi))


def split_front(axis: Axis, outer: int) -> list[Axis]:
    """Split one factor into an outer factor of size ``outer`` and the rest, refining it in
    place.
    """
    axis = find(axis)
    if outer <= 1 or axis.size % outer:
        raise Conflict(f"size {axis.size} does not split into {outer} equal parts")
    inner = axis.size // outer
    if axis.kind == "leaf":
        _become(axis, "product", [Axis(outer), Axis(inner)])
    else:
        _sum_as_product(axis, [Axis(outer), Axis(inner)])
    return factors(axis)


def _sum_as_product(axis: Axis, into: list[Axis]) -> None:
    """Rewrite segments as outer x inner: the outer factor is cut into the segments' shares."""
    outer, inner = into[0], into[1:]
    width = prod(f.size for f in inner)
    parts = segments(axis)
    if any(s.size % width for s in parts):
        raise Conflict(f"segments {[s.size for s in parts]} do not divide into runs of {width}")
    start = 0
    for s in parts:
        stop = start + s.size // width
        unify(s, product([cut(outer, start, stop), *inner]))
        start = stop
    axis.kind, axis.parts = "product", [outer, *inner]


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """The positions ``start`` to ``stop`` of an axis as an axis; a leaf is refined into
    segments.
    """
    axis = find(axis)
    if start == 0 and stop == axis.size:
        return axis
    if axis.kind == "leaf":
        pieces = [n for n in (start, stop - start, axis.size - stop)]
        made = [Axis(n) for n in pieces]
        _become(axis, "sum", [m for m in made if m.size])
        return find(made[1])
    if axis.kind == "sum":
        out, at = [], 0
        for s in segments(axis):
            lo, hi = max(start, at), min(stop, at + s.size)
            if lo < hi:
                out.append(cut(s, lo - at, hi - at))
            at += s.size
        return total(out)
    outer, *inner = factors(axis)
    width = prod(f.size for f in inner)
    if start % width or stop % width:
        raise Conflict(f"a slice {start}:{stop} runs across groups of {width}")
    return product([cut(outer, start // width, stop // width), *inner])


def size_after(axis: Axis, kept: dict[int, list[int]]) -> int:
    """Size once every leaf (by ``id``) keeps only the indices given for it."""
    axis = find(axis)
    if axis.kind == "leaf":
        return len(kept[id(axis)]) if id(axis) in kept else axis.size
    sizes = [size_after(p, kept) for p in axis.parts]
    return prod(sizes) if axis.kind == "product" else sum(sizes)


def positions(axis: Axis, kept: dict[int, list[int]]) -> np.ndarray:
    """The positions of the axis that remain, ascending."""
    axis = find(axis)
    if axis.kind == "leaf":
        return np.asarray(kept.get(id(axis), range(axis.size)), dtype=np.int64)
    if axis.kind == "sum":
        at, out = 0, []
        for p in axis.parts:
            out.append(positions(p, kept) + at)
            at += find(p).size
        return np.concatenate(out)
    out_p = np.zeros(1, dtype=np.int64)
    for p in axis.parts:
        out_p = (out_p[:, None] * find(p).size + positions(p, kept)[None, :]).reshape(-1)
    return out_p


def unit_of(axis: Axis, leaf: Axis) -> np.ndarray:
    """For each position of the axis the index within ``leaf`` it belongs to, -1 where none."""
    axis = find(axis)
    if axis is leaf:
        return np.arange(axis.size)
    if axis.kind == "leaf":
        return np.full(axis.size, -1)
    if axis.kind == "sum":
        return np.concatenate([unit_of(p, leaf) for p in axis.parts])
    out = np.full(1, -1)
    for p in axis.parts:
        u = unit_of(p, leaf)
        out = np.where(u[None, :] >= 0, u[None, :], out[:, None]).reshape(-1)
    return out
