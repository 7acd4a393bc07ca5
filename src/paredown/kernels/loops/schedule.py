"""Schedules: how an operator's stages become loops, one primitive at a time, the result unchanged.

Every primitive is checked when it is given and kept as plain data, so that a schedule can be stored
and replayed. Deviations from tensor compilers: a stage moves into the loops of another only by
``inline`` (elementwise producer), ``absorb`` (elementwise consumer) or ``group`` (equal outer
loops); halos are not inferred.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from paredown.errors import InputError
from paredown.kernels.loops import compute
from paredown.kernels.loops.compute import ACCUMULATED, Operator, Stage
from paredown.kernels.loops.expr import (
    Const,
    Expr,
    Load,
    Select,
    Var,
    names,
    rebuild,
    substitute,
    walk,
)
from paredown.kernels.loops.stmt import BUILT_IN, KINDS

UNROLLED = 64
"""The longest loop that is unrolled."""
Step = tuple[Any, ...]


@dataclass
class Leaf:
    """One loop of a stage: ``kind`` is one of ``KINDS`` or a built-in index it is bound to."""

    name: str
    extent: int
    reduce: bool
    kind: str = "serial"


@dataclass
class Loops:
    """The loops of one stage, outermost first."""

    leaves: list[Leaf]
    axes: dict[str, Expr]
    """Every axis of the stage in terms of leaves."""
    limits: dict[str, Expr] = field(default_factory=dict)
    """Leaf or axis that was split unevenly -> the condition that it is in range."""
    caches: list[tuple[str, str]] = field(default_factory=list)
    """(tensor, leaf): the tensor's part is fetched to shared memory in each turn of the leaf."""

    def leaf(self, name: str) -> Leaf:
        """A loop by name; raises ``InputError``."""
        for one in self.leaves:
            if one.name == name:
                return one
        raise InputError(f"no loop {name!r}: {', '.join(x.name for x in self.leaves)}")

    def replaced(self, gone: str, value: Expr) -> None:
        """Put an expression of new leaves where a leaf stood."""
        self.axes = {k: substitute(e, {gone: value}) for k, e in self.axes.items()}
        self.limits = {k: substitute(e, {gone: value}) for k, e in self.limits.items()}


class Schedule:
    """An operator with its loops. Primitives return the names they make; bad ones are refused."""

    def __init__(self, op: Operator) -> None:
        self.source = op
        self.op = op
        self.loops = {s.name: _plain(s) for s in op.stages}
        self.groups: dict[str, tuple[str, int]] = {}
        """Stage -> (the first stage of its group, how many outer loops they share)."""
        self.steps: list[Step] = []

    @classmethod
    def replay(cls, op: Operator, steps: Iterable[Step]) -> Schedule:
        """The schedule of the same operator that these primitives make."""
        new = cls(op)
        for name, *arguments in steps:
            if name not in PRIMITIVES:
                raise InputError(f"no primitive {name!r}; there are: {', '.join(PRIMITIVES)}")
            getattr(new, name)(*(tuple(a) if isinstance(a, list) else a for a in arguments))
        return new

    # Loops of one stage.

    def split(self, stage: str, leaf: str, factor: int) -> tuple[str, str]:
        """A loop as two: ``ceil(extent / factor)`` times ``factor``; the last turn may be short."""
        loops = self._loops(stage)
        old = loops.leaf(leaf)
        if factor < 1 or old.kind != "serial":
            raise InputError(f"{stage}: cannot split {leaf} ({old.kind}) by {factor}")
        outer = Leaf(f"{leaf}o", -(-old.extent // factor), old.reduce)
        inner = Leaf(f"{leaf}i", factor, old.reduce)
        at = loops.leaves.index(old)
        loops.leaves[at : at + 1] = [outer, inner]
        value = Var(outer.name) * factor + Var(inner.name)
        loops.replaced(leaf, value)
        if old.extent % factor:
            loops.limits[leaf] = value < old.extent
        self.steps.append(("split", stage, leaf, factor))
        return outer.name, inner.name

    def fuse(self, stage: str, first: str, second: str) -> str:
        """Two neighbouring loops as one, both over data or both over a reduction."""
        loops = self._loops(stage)
        a, b = loops.leaf(first), loops.leaf(second)
        at = loops.leaves.index(a)
        if loops.leaves[at + 1 : at + 2] != [b] or (a.reduce, a.kind, b.kind) != (
            b.reduce, "serial", "serial",
        ):  # fmt: skip
            raise InputError(f"{stage}: cannot fuse {first} with {second}: no plain neighbours")
        new = Leaf(f"{first}{second}", a.extent * b.extent, a.reduce)
        loops.leaves[at : at + 2] = [new]
        loops.replaced(first, Var(new.name) // b.extent)
        loops.replaced(second, Var(new.name) % b.extent)
        self.steps.append(("fuse", stage, first, second))
        return new.name

    def reorder(self, stage: str, *order: str) -> None:
        """Put the named loops in this order, in the places that they hold together."""
        loops = self._loops(stage)
        chosen = [loops.leaf(n) for n in order]
        if len(set(order)) != len(order):
            raise InputError(f"{stage}: a loop comes twice in {', '.join(order)}")
        places = sorted(loops.leaves.index(x) for x in chosen)
        for place, leaf in zip(places, chosen, strict=True):
            loops.leaves[place] = leaf
        self.steps.append(("reorder", stage, *order))

    def tile(
        self, stage: str, first: str, second: str, height: int, width: int
    ) -> tuple[str, str, str, str]:
        """Two loops in tiles of ``height`` by ``width``: outer, outer, inner, inner."""
        ao, ai = self.split(stage, first, height)
        bo, bi = self.split(stage, second, width)
        self.reorder(stage, ao, bo, ai, bi)
        return ao, bo, ai, bi

    def unroll(self, stage: str, leaf: str) -> None:
        """Ask for all turns of a loop (at most 64) one after the other."""
        if self._loops(stage).leaf(leaf).extent > UNROLLED:
            raise InputError(f"{stage}: {leaf} has more than {UNROLLED} turns to unroll")
        self._mark(stage, leaf, "unroll")

    def vectorize(self, stage: str, leaf: str) -> None:
        """Ask for vector instructions over a loop; it must end up innermost."""
        self._mark(stage, leaf, "vectorize")

    def parallel(self, stage: str, leaf: str) -> None:
        """Share the turns of a data loop among threads of the CPU."""
        if self._loops(stage).leaf(leaf).reduce:
            raise InputError(f"{stage}: {leaf} is reduced over: its turns are not independent")
        self._mark(stage, leaf, "parallel")

    def bind(self, stage: str, leaf: str, index: str) -> None:
        """Let a block's or a thread's index stand for a data loop."""
        loops = self._loops(stage)
        if index not in BUILT_IN:
            raise InputError(f"no index {index!r} to bind to; there are: {', '.join(BUILT_IN)}")
        if loops.leaf(leaf).reduce or any(x.kind == index for x in loops.leaves):
            raise InputError(f"{stage}: {leaf} is reduced over, or {index} is bound already")
        self._mark(stage, leaf, index)

    def cache(self, stage: str, tensor: str, leaf: str) -> None:
        """Fetch what one turn of a reduction's loop reads of a tensor into shared memory first."""
        loops = self._loops(stage)
        if not loops.leaf(leaf).reduce or tensor not in self.op.stage(stage).reads():
            raise InputError(f"{stage}: {tensor} cannot be cached at {leaf}")
        loops.caches.append((tensor, leaf))
        self.steps.append(("cache", stage, tensor, leaf))

    def _mark(self, stage: str, leaf: str, kind: str) -> None:
        one = self._loops(stage).leaf(leaf)
        if one.kind != "serial":
            raise InputError(f"{stage}: {leaf} is {one.kind} already")
        one.kind = kind
        verb = kind if kind in KINDS else "bind"
        self.steps.append((verb, stage, leaf, *([kind] if verb == "bind" else [])))

    def _loops(self, stage: str) -> Loops:
        self.op.stage(stage)
        return self.loops[stage]

    # Stages among each other.

    def inline(self, stage: str) -> None:
        """Compute an elementwise stage anew wherever it is read."""
        s = self.op.stage(stage)
        if s.reduce or stage in self.op.outputs:
            raise InputError(f"{stage} is reduced or a result: it cannot be computed inline")

        def expand(e: Expr) -> Expr | None:
            if not (isinstance(e, Load) and e.buffer == stage):
                return None
            index = (rebuild(i, expand) for i in e.index)
            return substitute(s.value, dict(zip(s.axes, index, strict=True)))

        self._rewrite(
            [replace(x, value=rebuild(x.value, expand), finish=rebuild(x.finish, expand))
             for x in self.op.stages if x.name != stage]
        )  # fmt: skip
        self.steps.append(("inline", stage))

    def absorb(self, stage: str, consumer: str) -> None:
        """Let an elementwise stage, the only reader of a reduction, be the end of that stage."""
        s, c = self.op.stage(stage), self.op.stage(consumer)
        loads = [e for e in walk(c.value) if isinstance(e, Load) and e.buffer == stage]
        alone = self.op.readers(stage) == [c] and stage not in self.op.outputs
        if c.reduce or not alone or c.tensor.shape != s.tensor.shape:
            raise InputError(f"{consumer} is not the elementwise end of {stage}")
        if not all(compute.identity(e, c.axes) for e in loads):
            raise InputError(f"{consumer} reads {stage} at other places than its own")
        at = dict(zip(c.axes, (Var(a) for a in s.axes), strict=True))
        ended = rebuild(
            substitute(c.value, at),
            lambda e: Var(ACCUMULATED) if isinstance(e, Load) and e.buffer == stage else None,
        )
        ended = substitute(ended, {ACCUMULATED: s.finish})
        new = replace(s, tensor=c.tensor, finish=ended)
        stages = [x for x in self.op.stages if x is not s]
        stages[stages.index(c)] = new
        self.loops[consumer] = replace(self.loops[stage])
        self._rewrite(stages)
        self.steps.append(("absorb", stage, consumer))

    def rfactor(self, stage: str, leaf: str, parts: int) -> str:
        """A reduction in ``parts`` interleaved ones, then one over the parts; returns the first.

        Must come before other primitives on the stage. Sums are rounded in another order.
        """
        s, loops = self.op.stage(stage), self._loops(stage)
        extents = dict(s.reduce)
        if leaf not in extents or any(x.kind != "serial" for x in loops.leaves):
            raise InputError(f"{stage}: {leaf} is no plain axis of its reduction")
        steps = -(-extents[leaf] // parts)
        part, turn = f"i{len(s.axes)}", Var(leaf)
        where = turn * parts + Var(part)
        value = substitute(s.value, {leaf: where})
        if extents[leaf] % parts:
            start = Const(compute.COMBINE[s.combine or "sum"][1])
            value = Select(where < extents[leaf], value, start)
        name = f"{stage}p"
        partial = Stage(
            compute.Tensor(name, (*s.tensor.shape, parts)), (*s.axes, part), value,
            tuple((r, steps if r == leaf else n) for r, n in s.reduce), s.combine,
        )  # fmt: skip
        whole = replace(
            s, value=partial.tensor[tuple(Var(a) for a in (*s.axes, "r0"))],
            reduce=(("r0", parts),),
        )  # fmt: skip
        stages = list(self.op.stages)
        stages[stages.index(s) : stages.index(s) + 1] = [partial, whole]
        self.loops[name], self.loops[stage] = _plain(partial), _plain(whole)
        self._rewrite(stages)
        self.steps.append(("rfactor", stage, leaf, parts))
        return name

    def group(self, depth: int, *stages: str) -> None:
        """Let neighbouring stages share their first ``depth`` loops.

        Those loops must be whole leading axes, equal in all of the stages, and a stage may read
        another of the group only at its own place in them.
        """
        order = [s.name for s in self.op.stages]
        at = order.index(self.op.stage(stages[0]).name)
        if tuple(order[at : at + len(stages)]) != stages or self.groups.keys() & set(stages):
            raise InputError(f"no neighbouring free stages: {', '.join(stages)}")
        first = self.shared(stages[0], depth)
        for name in stages:
            if self.shared(name, depth) != first:
                raise InputError(f"{name}: its outer {depth} loops are not those of {stages[0]}")
            s = self.op.stage(name)
            lead = tuple(Var(a) for a in s.axes[: first[0]])
            for e in (x for part in (s.value, s.finish) for x in walk(part)):
                apart = isinstance(e, Load) and e.buffer in stages
                if apart and isinstance(e, Load) and e.index[: first[0]] != lead:
                    raise InputError(f"{name} reads {e.buffer} at another place of the loops")
        self.groups.update({name: (stages[0], depth) for name in stages})
        self.steps.append(("group", depth, *stages))

    def shared(self, stage: str, depth: int) -> tuple[int, Any]:
        """How many whole leading axes the first loops of a stage are, and these loops, nameless.

        Raises ``InputError`` where they are parts of axes.
        """
        s, loops = self.op.stage(stage), self.loops[stage]
        lead = loops.leaves[:depth]
        canon = {leaf.name: Var(f"s{n}") for n, leaf in enumerate(lead)}
        own = set(canon)
        whole = [a for a in s.axes if names(loops.axes[a]) <= own]
        count = len(whole)
        used = {n for a in whole for n in names(loops.axes[a])}
        if len(lead) < depth or tuple(whole) != s.axes[:count] or used != own:
            raise InputError(f"{stage}: its outer {depth} loops are no whole leading axes")
        shape = [(x.extent, x.kind, x.reduce) for x in lead]
        return count, ([substitute(loops.axes[a], dict(canon)) for a in whole], shape)

    def _rewrite(self, stages: list[Stage]) -> None:
        if self.groups:
            raise InputError("stages are inlined, absorbed and factored before they are grouped")
        gone = {s.name for s in self.op.stages} - {s.name for s in stages}
        self.op = replace(self.op, stages=tuple(stages))
        for name in gone:
            del self.loops[name]


def _plain(s: Stage) -> Loops:
    data = [Leaf(a, n, False) for a, n in zip(s.axes, s.tensor.shape, strict=True)]
    reduced = [Leaf(a, n, True) for a, n in s.reduce]
    leaves = [*data, *reduced]
    return Loops(leaves, {x.name: Var(x.name) for x in leaves})


PRIMITIVES = (
    "split", "fuse", "reorder", "unroll", "vectorize", "parallel", "bind", "cache", "inline",
    "absorb", "rfactor", "group",
)  # fmt: skip
"""What a stored schedule may name; a tile is stored as its splits and reorder."""
