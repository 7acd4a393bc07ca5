"""A schedule as a program: one function for the CPU, or kernels of blocks and threads.

Stages of a group make one kernel. What only a group reads is kept in it: in a local array per turn
of the shared loops on the CPU, in shared memory per block with threads, barriers in between.
"""

from __future__ import annotations

from math import prod

from paredown.errors import InputError
from paredown.kernels.loops.caches import CachedNest
from paredown.kernels.loops.compute import Stage
from paredown.kernels.loops.expr import Expr, Var
from paredown.kernels.loops.nests import Nest, Place
from paredown.kernels.loops.schedule import Schedule
from paredown.kernels.loops.stmt import (
    BLOCK,
    BUILT_IN,
    THREAD,
    Allocate,
    Body,
    Kernel,
    Parameter,
    Program,
    Sizes,
    Sync,
    loop,
    statements,
)

SHARED_BYTES = 48 * 1024
"""Shared memory of a block that every CUDA device has."""
LOCAL_BYTES = 256 * 1024
"""Local arrays of one function at most: they lie on the stack, of any thread."""
THREADS = 1024
"""Threads of a block at most."""


def for_cpu(schedule: Schedule, name: str = "run") -> Program:
    """A program of ordinary functions; raises ``InputError`` for loops bound to threads."""
    for stage, loops in schedule.loops.items():
        if loops.caches or any(x.kind in BUILT_IN for x in loops.leaves):
            raise InputError(f"{stage}: bound or cached loops are for blocks and threads")
    return _program(schedule, name, threads=False)


def for_threads(schedule: Schedule, name: str = "run") -> Program:
    """A program of kernels of blocks and threads; raises ``InputError`` for what has no place."""
    for stage, loops in schedule.loops.items():
        if any(x.kind in ("parallel", "vectorize") for x in loops.leaves):
            raise InputError(f"{stage}: parallel and vectorized loops are for the CPU")
    return _program(schedule, name, threads=True)


def _program(schedule: Schedule, name: str, threads: bool) -> Program:
    op = schedule.op
    groups: dict[str, list[Stage]] = {}
    for s in op.stages:
        groups.setdefault(schedule.groups.get(s.name, (s.name, 0))[0], []).append(s)
    kept: set[str] = set()
    for members in groups.values():
        inside = {s.name for s in members}
        kept |= {
            n for n in inside
            if n not in op.outputs and {r.name for r in op.readers(n)} <= inside and len(inside) > 1
        }  # fmt: skip
    works = [s.name for s in op.stages if s.name not in kept and s.name not in op.outputs]
    everything = (
        *(Parameter(t.name, const=True) for t in op.inputs),
        *(Parameter(n) for n in (*op.outputs, *works)),
    )
    kernels: list[Kernel] = []
    for members in groups.values():
        body, grid, block = _group(schedule, members, kept, threads)
        written = {s.name for s in members}
        used = {s.name for s in members} | {n for s in members for n in s.reads()}
        parameters = tuple(
            Parameter(p.name, const=p.name not in written) for p in everything if p.name in used
        )
        kernels.append(Kernel(f"{name}_k{len(kernels)}", parameters, body, grid, block))
    return Program(name, everything, tuple(kernels))


def _group(
    schedule: Schedule, members: list[Stage], kept: set[str], threads: bool
) -> tuple[Body, Sizes | None, Sizes | None]:
    first = members[0].name
    depth = schedule.groups.get(first, (first, 0))[1]
    shared = schedule.loops[first].leaves[:depth]
    dropped = schedule.shared(first, depth)[0]
    tensors = schedule.op.tensors()
    places = {n: Place(t, n, dropped if n in kept else 0) for n, t in tensors.items()}
    grid, block = _sizes(schedule, members, BLOCK), _sizes(schedule, members, THREAD)
    if threads and any(x.kind not in BLOCK for x in shared):
        raise InputError(f"{first}: loops that stages share must be bound to blocks")
    if prod(block) > THREADS:
        raise InputError(f"{first}: {prod(block)} threads in a block, at most {THREADS}")
    scope = "shared" if threads else "local"
    body: Body = tuple(
        Allocate(s.name, "float", places[s.name].size, scope) for s in members if s.name in kept
    )
    fresh: set[str] = set()
    for s in members:
        if threads and s.reads() & fresh:
            body = (*body, Sync())
            fresh.clear()
        guards = _guards(schedule, s, grid, block) if threads else []
        loops = schedule.loops[s.name]
        nest = (
            CachedNest(s, loops, depth, places, guards, block)
            if loops.caches
            else Nest(s, loops, depth, places, guards)
        )
        body = (*body, *nest.body())
        fresh.add(s.name)
    if not threads:
        _fits(first, body, "local", LOCAL_BYTES)
        for n, leaf in reversed(list(enumerate(shared))):
            body = loop(f"g{n}", leaf.extent, body, leaf.kind)
        return body, None, None
    _fits(first, body, "shared", SHARED_BYTES)
    return body, grid, block


def _sizes(
    schedule: Schedule, members: list[Stage], indices: tuple[str, ...]
) -> tuple[int, int, int]:
    found = [1, 1, 1]
    for s in members:
        for leaf in schedule.loops[s.name].leaves:
            if leaf.kind in indices:
                at = indices.index(leaf.kind)
                found[at] = max(found[at], leaf.extent)
    return found[0], found[1], found[2]


def _guards(
    schedule: Schedule, s: Stage, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> list[Expr]:
    """Conditions that keep out blocks and threads which have no element of this stage."""
    own = {x.kind: x.extent for x in schedule.loops[s.name].leaves}
    sizes = dict(zip((*BLOCK, *THREAD), (*grid, *block), strict=True))
    return [Var(i) < own.get(i, 1) for i, n in sizes.items() if own.get(i, 1) < n]


def _fits(name: str, body: Body, scope: str, limit: int) -> None:
    found = [s for s in statements(body) if isinstance(s, Allocate) and s.scope == scope]
    size = 4 * sum(s.size for s in found)
    if size > limit:
        raise InputError(f"{name}: {size} bytes in {scope} arrays, at most {limit}")
