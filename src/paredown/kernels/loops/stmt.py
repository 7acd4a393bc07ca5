"""Statements, kernels and programs: what the printers print, the parser reads, the emulator runs.

A kernel with a grid is one thread's program, run by every thread of every block; ``blockIdx`` and
``threadIdx`` are variables in it. A kernel without is an ordinary function. A program runs its
kernels one after the other on the same named buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from paredown.errors import InputError
from paredown.kernels.loops.expr import Const, Expr, Load, Number, Var, rebuild, walk, wrap

BLOCK = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
THREAD = ("threadIdx.x", "threadIdx.y", "threadIdx.z")
BUILT_IN = (*BLOCK, *THREAD)
KINDS = ("serial", "unroll", "vectorize", "parallel")


class Stmt:
    """What all statements share."""


Body = tuple[Stmt, ...]
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Declare(Stmt):
    """A private scalar, ``dtype`` float or int, and its first value."""

    name: str
    dtype: str
    value: Expr


@dataclass(frozen=True)
class Assign(Stmt):
    """A new value of a private scalar."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Store(Stmt):
    """A new value of one element of a buffer."""

    buffer: str
    index: Expr
    value: Expr


@dataclass(frozen=True)
class Allocate(Stmt):
    """An array of ``size`` elements, ``local`` to a thread or ``shared`` by its block."""

    name: str
    dtype: str
    size: int
    scope: str = "local"


@dataclass(frozen=True)
class For(Stmt):
    """``for (int name = start; name compare stop; name update step)``, of a kind of ``KINDS``."""

    name: str
    start: Expr
    stop: Expr
    body: Body
    kind: str = "serial"
    compare: str = "<"
    update: str = "+="
    step: Expr = field(default_factory=lambda: Const(1))

    @property
    def extent(self) -> int | None:
        """Times round, where it counts up from 0 by 1 to a constant."""
        match self:
            case For(_, Const(0), Const(int(n)), _, _, "<", "+=", Const(1)):
                return n
            case _:
                return None


@dataclass(frozen=True)
class If(Stmt):
    """``body`` where the condition holds, else ``otherwise``."""

    condition: Expr
    body: Body
    otherwise: Body = ()


@dataclass(frozen=True)
class Sync(Stmt):
    """A barrier of the threads of a block: ``__syncthreads()``."""


@dataclass(frozen=True)
class Parameter:
    """A buffer that is passed in; ``const`` ones are only read."""

    name: str
    dtype: str = "float"
    const: bool = False


@dataclass(frozen=True)
class Kernel:
    """One function: ``grid`` and ``block`` (x, y, z) for threads, None for an ordinary one."""

    name: str
    parameters: tuple[Parameter, ...]
    body: Body
    grid: Sizes | None = None
    block: Sizes | None = None

    def sizes(self) -> tuple[Sizes, Sizes]:
        """Blocks and threads of each; raises ``InputError`` for an ordinary function."""
        if self.grid is None or self.block is None:
            raise InputError(f"{self.name} is no kernel of threads: bind its loops first")
        return self.grid, self.block


@dataclass(frozen=True)
class Program:
    """``name(parameters)``: its kernels in order. Parameters: inputs, outputs, then workspaces."""

    name: str
    parameters: tuple[Parameter, ...]
    kernels: tuple[Kernel, ...]


def loop(name: str, extent: int, body: Body, kind: str = "serial") -> Body:
    """``extent`` times ``body``; no loop where that is once."""
    if extent == 1:
        return substituted(body, {name: Const(0)})
    return (For(name, Const(0), Const(extent), body, kind),)


def guarded(conditions: list[Expr], body: Body) -> Body:
    """``body`` where all conditions hold."""
    for c in reversed(conditions):
        if not isinstance(c, Const):
            body = (If(c, body),)
        elif not c.value:
            body = ()
    return body


def inner(s: Stmt) -> tuple[Body, ...]:
    """The bodies directly inside a statement."""
    match s:
        case For():
            return (s.body,)
        case If():
            return s.body, s.otherwise
        case _:
            return ()


def expressions(s: Stmt) -> tuple[Expr, ...]:
    """The expressions directly in a statement."""
    match s:
        case Declare() | Assign():
            return (s.value,)
        case Store():
            return s.index, s.value
        case For():
            return s.start, s.stop, s.step
        case If():
            return (s.condition,)
        case _:
            return ()


def statements(body: Body) -> Iterator[Stmt]:
    """All statements, outside in."""
    for s in body:
        yield s
        for part in inner(s):
            yield from statements(part)


def all_expressions(body: Body) -> Iterator[Expr]:
    """All expressions in all statements, inside out included."""
    for s in statements(body):
        for e in expressions(s):
            yield from walk(e)


def mapped(body: Body, change: Callable[[Expr], Expr | None]) -> Body:
    """A copy in which ``change`` may replace any part of any expression."""

    def of(s: Stmt) -> Stmt:
        match s:
            case Declare() | Assign():
                return replace(s, value=rebuild(s.value, change))
            case Store():
                return replace(s, index=rebuild(s.index, change), value=rebuild(s.value, change))
            case For():
                return replace(
                    s,
                    start=rebuild(s.start, change),
                    stop=rebuild(s.stop, change),
                    step=rebuild(s.step, change),
                    body=mapped(s.body, change),
                )
            case If():
                return replace(
                    s,
                    condition=rebuild(s.condition, change),
                    body=mapped(s.body, change),
                    otherwise=mapped(s.otherwise, change),
                )
            case _:
                return s

    return tuple(of(s) for s in body)


def substituted(body: Body, values: dict[str, Expr] | dict[str, Const]) -> Body:
    """A copy with variables replaced by expressions."""
    return mapped(body, lambda e: values.get(e.name) if isinstance(e, Var) else None)


def on_buffers(body: Body, new: dict[str, str]) -> Body:
    """A copy with buffers renamed."""

    def change(e: Expr) -> Expr | None:
        if not (isinstance(e, Load) and e.buffer in new):
            return None
        return Load(new[e.buffer], tuple(rebuild(i, change) for i in e.index))

    def of(s: Stmt) -> Stmt:
        match s:
            case Store():
                return replace(s, buffer=new.get(s.buffer, s.buffer))
            case For():
                return replace(s, body=tuple(map(of, s.body)))
            case If():
                return replace(
                    s, body=tuple(map(of, s.body)), otherwise=tuple(map(of, s.otherwise))
                )
            case _:
                return s

    return tuple(of(s) for s in mapped(body, change))


def has_sync(body: Body) -> bool:
    """Whether a barrier is among the statements."""
    return any(isinstance(s, Sync) for s in statements(body))


def store(buffer: str, index: Expr | Number, value: Expr | Number) -> Store:
    """``buffer[index] = value``."""
    return Store(buffer, wrap(index), wrap(value))
