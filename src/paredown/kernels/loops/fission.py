"""CUDA-like text to C++ by rule: blocks and threads become loops, split at barriers.

The baseline for translating models. As MCUDA (Stratton et al. 2008) and its successors do: a block
is a turn of an outer loop (shared among the CPU's threads), the code between two barriers a loop
over the block's threads (fission), shared memory an array on the stack. A private value that lives
across a barrier gets a place per thread, or is computed again where that needs no memory. Loops and
branches that contain a barrier must not depend on the thread, and are kept around the thread loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

from paredown.errors import InputError
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.expr import Const, Expr, Load, Var, names, rebuild, substitute, walk
from paredown.kernels.loops.parser import parse
from paredown.kernels.loops.stmt import (
    BLOCK,
    THREAD,
    Allocate,
    Assign,
    Body,
    Declare,
    For,
    If,
    Kernel,
    Program,
    Stmt,
    Store,
    expressions,
    has_sync,
    loop,
    statements,
    substituted,
)
from paredown.kernels.loops.unique import unique

AROUND = -1
"""The segment of bounds and conditions around barriers."""


def transpile(text: str) -> str:
    """CUDA-like text to C++ text of the same signature; ``InputError`` for what has no rule."""
    return print_cpp(without_threads(parse(text)))


def without_threads(program: Program) -> Program:
    """The same program as ordinary functions."""
    return replace(program, kernels=tuple(_kernel(k) for k in program.kernels))


def _kernel(k: Kernel) -> Kernel:
    grid, block = k.sizes()
    k = unique(k)
    taken = {p.name for p in k.parameters} | {
        s.name for s in statements(k.body) if isinstance(s, Declare | Allocate | For)
    }
    indices: dict[str, Expr] = {}
    for built_in, size in zip((*BLOCK, *THREAD), (*grid, *block), strict=True):
        name = built_in[0] + built_in[-1]  # bx, ty
        while name in taken:
            name += "_"
        indices[built_in] = Const(0) if size == 1 else Var(name)
    body = _Fission(k, indices).whole(substituted(k.body, indices))
    for n, (built_in, size) in enumerate(zip(BLOCK, grid, strict=True)):
        index = indices[built_in]
        if isinstance(index, Var):
            outermost = all(m == 1 for m in grid[n + 1 :])
            body = loop(index.name, size, body, "parallel" if outermost else "serial")
    return Kernel(k.name, k.parameters, body)


@dataclass
class _Private:
    """A private scalar or array and where it is used."""

    declared: Declare | Allocate
    segment: int
    used: set[int] = field(default_factory=set)
    assigned: bool = False


class _Fission:
    def __init__(self, k: Kernel, indices: dict[str, Expr]) -> None:
        self.name, self.block = k.name, k.sizes()[1]
        self.threads = prod(self.block)
        x, y, _ = self.block
        tx, ty, tz = (indices[t] for t in THREAD)
        self.indices = (tx, ty, tz)
        self.thread = (tz * y + ty) * x + tx
        self.blocks = {e.name for b in BLOCK if isinstance(e := indices[b], Var)}
        self.private: dict[str, _Private] = {}
        self.segments = 0
        self.kept: dict[str, Expr] = {}
        """Declarations that are computed again: name -> value."""
        self.placed: dict[str, int] = {}
        """What has a place per thread: name -> elements each."""

    def whole(self, body: Body) -> Body:
        """A kernel's body as one block's."""
        shared = [s for s in statements(body) if isinstance(s, Allocate) and s.scope == "shared"]
        self.survey(body)
        for name, p in self.private.items():
            if p.used <= {p.segment}:
                continue
            if isinstance(p.declared, Declare) and not p.assigned and self.again(p.declared.value):
                self.kept[name] = p.declared.value
            else:
                self.placed[name] = p.declared.size if isinstance(p.declared, Allocate) else 1
        made: list[Stmt] = [replace(s, scope="local") for s in shared]
        for name, size in self.placed.items():
            made.append(Allocate(name, self.private[name].declared.dtype, size * self.threads))
        self.segments = 0
        return (*made, *self.split(body, frozenset(self.blocks)))

    # First pass: which segment declares and which use every private name.

    def survey(self, body: Body) -> None:
        """Number the segments as ``split`` will, and note names."""
        for segment in _segments(body):
            if isinstance(segment, tuple):
                self.segments += 1
                for s in statements(segment):
                    self.note(s)
                continue
            for e in expressions(segment):
                for name in names(e) & self.private.keys():
                    self.private[name].used.add(AROUND)
            for part in (segment.body,) if isinstance(segment, For) else _sides(segment):
                self.survey(part)

    def note(self, s: Stmt) -> None:
        """One statement of the present segment."""
        if isinstance(s, Declare) or (isinstance(s, Allocate) and s.scope == "local"):
            self.private[s.name] = _Private(s, self.segments)
        touched = {s.name} if isinstance(s, Assign) else set[str]()
        if isinstance(s, Store):
            touched.add(s.buffer)
        for name in touched & self.private.keys():
            self.private[name].assigned = True
        for e in expressions(s):
            touched |= names(e) | {x.buffer for x in walk(e) if isinstance(x, Load)}
        for name in touched & self.private.keys():
            self.private[name].used.add(self.segments)

    def again(self, value: Expr) -> bool:
        """Whether a value can be computed anywhere: no memory, no changing scalar."""
        if any(isinstance(e, Load) for e in walk(value)):
            return False
        return all(n not in self.private or n in self.kept for n in names(value))

    # Second pass: thread loops.

    def split(self, body: Body, uniform: frozenset[str]) -> Body:
        """Statements of a block; ``uniform`` names are equal in all its threads."""
        done: list[Stmt] = []
        for segment in _segments(body):
            match segment:
                case tuple():
                    self.segments += 1
                    done += self.over_threads(segment)
                case For():
                    bounds = [self.same(e, uniform | {segment.name})
                              for e in (segment.start, segment.stop, segment.step)]  # fmt: skip
                    inside = self.split(segment.body, uniform | {segment.name})
                    done.append(
                        replace(
                            segment, start=bounds[0], stop=bounds[1], step=bounds[2], body=inside
                        )
                    )
                case If():
                    condition = self.same(segment.condition, uniform)
                    done.append(If(condition, *(self.split(p, uniform) for p in _sides(segment))))
        return tuple(done)

    def same(self, e: Expr, uniform: frozenset[str]) -> Expr:
        """A bound or condition around a barrier, proved equal in all threads of a block."""
        while names(e) & self.kept.keys():
            e = substitute(e, self.kept)
        if any(isinstance(x, Load) for x in walk(e)) or not names(e) <= uniform:
            raise InputError(
                f"{self.name}: a barrier inside a loop or branch that may differ from thread to "
                f"thread: {', '.join(sorted(names(e) - uniform)) or 'it reads memory'}"
            )
        return e

    def over_threads(self, segment: Body) -> Body:
        """One segment for every thread of the block."""
        segment = self.rewritten(segment)
        used = {n for s in statements(segment) for e in expressions(s) for n in names(e)}
        declared = {s.name for s in statements(segment) if isinstance(s, Declare)}
        again: list[Stmt] = []
        for name in reversed(self.kept):
            if name in used and name not in declared:
                p = self.private[name].declared
                again.insert(0, p)
                used |= names(self.kept[name])
        body = (*again, *segment)
        for index, size in zip(self.indices, self.block, strict=True):
            if isinstance(index, Var):
                body = loop(index.name, size, body)
        return body if segment else ()

    def rewritten(self, body: Body) -> Body:
        """What has a place per thread, there."""

        def at(name: str, index: Expr) -> Expr:
            # Neighbouring threads' places are neighbours: thread loops run along them.
            return index * self.threads + self.thread

        def change(e: Expr) -> Expr | None:
            match e:
                case Var(name) if name in self.placed:
                    return Load(name, (self.thread,))
                case Load(buffer, index) if buffer in self.placed:
                    return Load(buffer, (at(buffer, rebuild(index[0], change)),))
                case _:
                    return None

        def of(s: Stmt) -> Body:
            match s:
                case Declare() | Assign() if s.name in self.placed:
                    return (Store(s.name, self.thread, rebuild(s.value, change)),)
                case Declare() | Assign():
                    return (replace(s, value=rebuild(s.value, change)),)
                case Allocate():
                    moved = s.name in self.placed or s.scope == "shared"
                    return () if moved else (s,)
                case Store():
                    index = rebuild(s.index, change)
                    if s.buffer in self.placed:
                        index = at(s.buffer, index)
                    return (Store(s.buffer, index, rebuild(s.value, change)),)
                case For():
                    bounds = {n: rebuild(getattr(s, n), change) for n in ("start", "stop", "step")}
                    return (replace(s, **bounds, body=self.rewritten(s.body)),)
                case If():
                    parts = (self.rewritten(p) for p in _sides(s))
                    return (If(rebuild(s.condition, change), *parts),)
                case _:
                    return (s,)

        return tuple(x for s in body for x in of(s))


def _sides(s: If) -> tuple[Body, Body]:
    return s.body, s.otherwise


def _segments(body: Body) -> list[Body | For | If]:
    """Runs of statements without a barrier, and the loops and branches that contain one."""
    found: list[Body | For | If] = []
    run: list[Stmt] = []
    for s in body:
        if not has_sync((s,)):
            run.append(s)
            continue
        if run:
            found.append(tuple(run))
            run = []
        if isinstance(s, For | If):
            found.append(s)
    return [*found, tuple(run)] if run else found
