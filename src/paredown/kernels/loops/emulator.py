"""Blocks and threads emulated: a kernel run by all its threads, in step, with barriers checked.

Every statement is carried out for all threads of many blocks at once (NumPy lanes, masked where
threads branch). Running in step would hide a missing barrier, so accesses are watched (``races``):
two threads that touch one element between two barriers, one of them writing, are an error; so are
blocks that touch one element of a buffer, an access outside a buffer, and a barrier that some
threads of a block do not reach. Shared and private arrays start as NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from paredown.errors import InputError
from paredown.kernels.loops.arithmetic import OPERATORS, Arithmetic
from paredown.kernels.loops.expr import Expr, Load
from paredown.kernels.loops.races import EmulationError, Watched
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
    Sync,
)

LANES = 1 << 15
"""Threads that are emulated at once, at least one block."""
DTYPES = {"float": np.float32, "int": np.int64}
EMPTY = {"float": np.nan, "int": -(1 << 31)}


def emulate(program: Program, buffers: Mapping[str, Any], *, races: bool = True) -> None:
    """Run a program on flat float32 NumPy arrays by name, written in place.

    Raises ``EmulationError`` for what is undefined on a device, ``InputError`` for missing buffers.
    """
    missing = [p.name for p in program.parameters if p.name not in buffers]
    if missing:
        raise InputError(f"{program.name} needs buffers {', '.join(missing)}")
    for k in program.kernels:
        grid, block = k.sizes()
        known = {p.name: Watched(p.name, buffers[p.name], races and not p.const)
                 for p in k.parameters}  # fmt: skip
        blocks, threads = prod(grid), prod(block)
        at_once = max(1, LANES // threads)
        for first in range(0, blocks, at_once):
            numbers = np.arange(first, min(first + at_once, blocks))
            try:
                _Blocks(k, numbers, threads, known, races).run(k.body)
            except EmulationError as e:
                raise EmulationError(f"{k.name}: {e}") from None


class _Blocks(Arithmetic):
    """Some blocks of one kernel, all threads in step."""

    def __init__(
        self, k: Kernel, blocks: Any, threads: int, known: dict[str, Watched], races: bool
    ) -> None:
        grid, block = k.sizes()
        self.blocks, self.threads, self.races = len(blocks), threads, races
        self.lanes = self.blocks * threads
        self.lane = np.arange(self.lanes)
        self.own = self.lane // threads
        """Which of the blocks emulated now a lane belongs to."""
        self.block = np.repeat(blocks, threads)
        self.buffers = dict(known)
        for buffer in known.values():
            buffer.begin()
        self.mask: Any = np.ones(self.lanes, bool)
        self.variables: dict[str, Any] = {}
        for names, number, sizes in (
            (BLOCK, self.block, grid),
            (THREAD, self.lane % threads, block),
        ):
            x, y, _ = sizes
            self.variables |= dict(
                zip(names, (number % x, number // x % y, number // (x * y)), strict=True)
            )

    # Values.

    def variable(self, name: str) -> Any:
        """A scalar of every lane."""
        return self.variables[name]

    def where(self, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """Each side only for the lanes that take it."""
        taken = np.broadcast_to(np.not_equal(condition, 0), self.lanes)
        outer = self.mask
        self.mask = outer & taken
        a = yes()
        self.mask = outer & ~taken
        b = no()
        self.mask = outer
        return np.where(taken, a, b)

    def element(self, load: Load, index: list[Any]) -> Any:
        """Elements, read by the lanes that are active."""
        buffer = self.buffers[load.buffer]
        at = self.place(buffer, index[0])
        return buffer.read(at, self.mask, self.lane, self.block)

    def place(self, buffer: Watched, index: Any) -> Any:
        """Places of all lanes in a buffer; 0 for lanes that are not active."""
        at = np.where(self.mask, index, 0)
        bad = (at < 0) | (at >= buffer.size)
        if bad.any():
            raise EmulationError(
                f"{buffer.name}[{int(at[bad][0])}] is outside its {buffer.size} elements"
            )
        return at + buffer.start

    def lanewise(self, e: Expr, dtype: str) -> Any:
        """A value for every lane."""
        return np.broadcast_to(np.asarray(self.value(e), DTYPES[dtype]), self.lanes)

    # Statements.

    def run(self, body: Body) -> None:
        """Statements in order, by the lanes that are active."""
        for s in body:
            if not self.mask.any():
                return
            self.one(s)

    def one(self, s: Stmt) -> None:
        """One statement."""
        match s:
            case Declare(name, dtype, value):
                self.variables[name] = np.array(self.lanewise(value, dtype))
            case Assign(name, value):
                old = self.variables[name]
                dtype = "int" if old.dtype == np.int64 else "float"
                self.variables[name] = np.where(self.mask, self.lanewise(value, dtype), old)
            case Store(name, index, value):
                buffer = self.buffers[name]
                values = self.lanewise(value, "float" if buffer.floating else "int")
                at = self.place(buffer, self.value(index))
                buffer.write(at, values, self.mask, self.lane, self.block)
            case Allocate():
                self.allocate(s)
            case For():
                self.loop(s)
            case If(condition, body, otherwise):
                taken = np.broadcast_to(np.not_equal(self.value(condition), 0), self.lanes)
                outer = self.mask
                self.mask = outer & taken
                self.run(body)
                self.mask = outer & ~taken
                self.run(otherwise)
                self.mask = outer
            case Sync():
                self.barrier()
            case _:
                raise AssertionError(f"no such statement: {s}")

    def allocate(self, s: Allocate) -> None:
        """One array per block or per lane, in one buffer."""
        shared = s.scope == "shared"
        owner = self.own if shared else self.lane
        count = self.blocks if shared else self.lanes
        data = np.full(count * s.size, EMPTY[s.dtype], DTYPES[s.dtype])
        self.buffers[s.name] = Watched(
            s.name, data, self.races and shared, size=s.size, start=owner * s.size
        )

    def loop(self, s: For) -> None:
        """A counted loop; lanes leave it one by one."""
        outer = self.mask
        step = OPERATORS[s.update.removesuffix("=")]
        self.variables[s.name] = np.array(self.lanewise(s.start, "int"))
        while True:
            self.mask = self.mask & OPERATORS[s.compare](self.variables[s.name], self.value(s.stop))
            if not self.mask.any():
                break
            self.run(s.body)
            old = self.variables[s.name]
            self.variables[s.name] = np.where(self.mask, step(old, self.value(s.step)), old)
        self.mask = outer

    def barrier(self) -> None:
        """All threads of a block, or none of it."""
        reached = np.bincount(self.own, weights=self.mask, minlength=self.blocks)
        if not np.isin(reached, (0, self.threads)).all():
            raise EmulationError("a barrier that only some threads of a block reach")
        for buffer in self.buffers.values():
            buffer.barrier(self.mask)
