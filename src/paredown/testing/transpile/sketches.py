"""Sketches: schedules drawn from what suits a stage, for the CPU, and one by rule for threads.

After the sketches of an auto-scheduler, much smaller: elementwise stages are fused into their
readers or into the reductions they end; stages over equal outer axes share their loops; reductions
are tiled or vectorized along themselves. Every choice comes from ``random.Random``.
"""

from __future__ import annotations

import random
from math import prod

from paredown.errors import InputError
from paredown.kernels.loops import lower
from paredown.kernels.loops.compute import Operator, Stage, identity
from paredown.kernels.loops.expr import Call, Load, names, walk
from paredown.kernels.loops.schedule import Schedule

WIDTHS = (8, 16, 32, 64)
HEIGHTS = (1, 2, 3, 4, 6, 7, 8)
PARTS = 8
"""Into which an elementwise stage is split, to be shared among threads."""
SHORT = 16
"""Turns of a reduction's loop that may be unrolled."""


def fused(op: Operator, *, again: bool) -> Schedule:
    """Elementwise stages computed where they are read, or at the end of a reduction.

    What is read more than once per element keeps its own stage, unless ``again`` says that a stage
    without functions may be computed each time: a frame around an image, say.
    """
    schedule = Schedule(op)
    while _fuse_one(schedule, again):
        continue
    return schedule


def _fuse_one(schedule: Schedule, again: bool) -> bool:
    op = schedule.op
    for s in op.stages:
        readers = op.readers(s.name)
        if s.name in op.outputs or len(readers) != 1:
            continue
        reader = readers[0]
        cheap = not any(isinstance(e, Call) for e in walk(s.value))
        once = prod(reader.extents.values()) <= s.tensor.size or (again and cheap)
        try:
            if s.combine is None and once:
                schedule.inline(s.name)
                return True
            if s.combine is not None and reader.combine is None:
                schedule.absorb(s.name, reader.name)
                return True
        except InputError:
            continue  # its reader reads it elsewhere: it stays a stage
    return False


def group(schedule: Schedule, depth_limit: int = 9) -> None:
    """Neighbouring stages share as many outer loops as the first two can."""
    order = [s.name for s in schedule.op.stages]
    at = 0
    while at < len(order) - 1:
        taken = 1
        for depth in range(min(depth_limit, len(schedule.op.stage(order[at]).axes)), 0, -1):
            while at + taken < len(order) and _can(schedule, depth, order[at : at + taken + 1]):
                taken += 1
            if taken > 1:
                schedule.group(depth, *order[at : at + taken])
                break
        at += taken


def _can(schedule: Schedule, depth: int, names: list[str]) -> bool:
    trial = Schedule.replay(schedule.source, schedule.steps)
    stages = [schedule.op.stage(n) for n in names]
    if any(s.combine is None and len(s.axes) <= depth for s in stages):
        return False  # nothing would be left to vectorize or to give to threads
    try:
        trial.group(depth, *names)
    except InputError:
        return False
    return True


def for_cpu(op: Operator, choose: random.Random) -> Schedule:
    """One random schedule for the CPU; outermost loops are parallel, on however many threads."""
    schedule = fused(op, again=choose.random() < 0.2)
    if len(schedule.op.stages) > 1 and choose.random() < 0.8:
        group(schedule, choose.choice((1, 2, 9)))
    for s in schedule.op.stages:
        depth = schedule.groups.get(s.name, ("", 0))[1]
        if s.combine is None:
            _elementwise(schedule, s, depth)
        else:
            _reduction(schedule, s, depth, choose)
    _share(schedule)
    return schedule


def _elementwise(schedule: Schedule, s: Stage, depth: int) -> None:
    loads = [e for e in walk(s.value) if isinstance(e, Load)]
    if depth == 0 and all(identity(e, s.axes) for e in loads):
        flat = fuse_all(schedule, s.name)
        if flat is not None and s.tensor.size > PARTS * WIDTHS[-1]:
            schedule.split(s.name, flat, -(-s.tensor.size // PARTS))
    leaves = schedule.loops[s.name].leaves[depth:]
    if leaves:
        schedule.vectorize(s.name, leaves[-1].name)


def fuse_all(schedule: Schedule, stage: str) -> str | None:
    """All data loops of a stage as one, its name; None for a scalar."""
    names = [x.name for x in schedule.loops[stage].leaves if not x.reduce]
    whole = names[0] if names else None
    for name in names[1:]:
        whole = schedule.fuse(stage, str(whole), name)
    return whole


def _reduction(schedule: Schedule, s: Stage, depth: int, choose: random.Random) -> None:
    loops = schedule.loops[s.name]
    data = [x.name for x in loops.leaves[depth:] if not x.reduce]
    reduced = [x.name for x in loops.leaves if x.reduce]
    loads = [e for e in walk(s.value) if isinstance(e, Load) and e.index]
    dense = any(s.axes and s.axes[-1] in names(e.index[-1]) for e in loads)
    # Vectors run along what lies densely: outputs, or where no operand does, the reduction.
    if not data or choose.random() < (0.1 if dense else 0.9):
        # One element at a time, vectors along the reduction.
        schedule.vectorize(s.name, reduced[-1])
        return
    extents = {x.name: x.extent for x in loops.leaves}
    width = choose.choice(_widths(extents[data[-1]]))
    outer, inner = schedule.split(s.name, data[-1], width)
    order, tile = [*data[:-1], outer], [inner]
    if len(data) > 1:
        height = choose.choice([h for h in HEIGHTS if extents[data[-2]] % h == 0])
        if height > 1:
            above, below = schedule.split(s.name, data[-2], height)
            order[-2], tile = above, [below, inner]
            schedule.unroll(s.name, below)
    if len(reduced) > 1 and extents[reduced[-1]] <= SHORT and choose.random() < 0.5:
        schedule.unroll(s.name, reduced[-1])
    schedule.reorder(s.name, *order, *reduced, *tile)
    schedule.vectorize(s.name, inner)


def _widths(extent: int) -> list[int]:
    """Even parts of a loop that are a vector or more, and powers of two that leave a rest."""
    even = [w for w in range(WIDTHS[0], WIDTHS[-1] + 1) if extent % w == 0]
    return even or [w for w in WIDTHS if w <= extent] or [extent]


def _share(schedule: Schedule) -> None:
    """The outermost loop of every kernel among threads."""
    for s in schedule.op.stages:
        first = schedule.loops[s.name].leaves[:1]
        if first and not first[0].reduce and first[0].kind == "serial":
            schedule.parallel(s.name, first[0].name)


# Blocks and threads: one schedule by rule, since no device measures here.

BLOCK_THREADS = 128
ROW_THREADS = 64
SIDE = 16
"""Threads of a block along each axis of a tile."""


def for_threads(op: Operator) -> Schedule:
    """One schedule for blocks and threads: the best of a few that fits a block's memory."""
    for together, cached in ((True, True), (False, True), (True, False)):
        schedule = _threaded(op, together, cached)
        try:
            lower.for_threads(schedule)
        except InputError:
            continue  # shared memory too small, or a tensor that no box holds
        return schedule
    return _threaded(op, False, False)


def _threaded(op: Operator, together: bool, cached: bool) -> Schedule:
    schedule = fused(op, again=True)
    for s in schedule.op.stages:
        if s.combine is not None and not _product(s):
            axis, extent = max(s.reduce, key=lambda r: r[1])
            if extent >= ROW_THREADS // 2:
                schedule.rfactor(s.name, axis, min(ROW_THREADS, extent))
    if together:
        for depth, names in _runs(schedule):
            for name in names:
                lead = [x.name for x in schedule.loops[name].leaves[:depth]]
                whole = lead[0]
                for one in lead[1:]:
                    whole = schedule.fuse(name, whole, one)
            schedule.group(1, *names)
    for s in schedule.op.stages:
        if s.name in schedule.groups:
            schedule.bind(s.name, schedule.loops[s.name].leaves[0].name, "blockIdx.x")
            _bind_rest(schedule, s.name, 1)
        elif _product(s):
            _bind_product(schedule, s, cached)
        elif s.tensor.shape:
            flat = str(fuse_all(schedule, s.name))
            outer, inner = schedule.split(s.name, flat, min(BLOCK_THREADS, s.tensor.size))
            schedule.bind(s.name, outer, "blockIdx.x")
            schedule.bind(s.name, inner, "threadIdx.x")
    return schedule


def _runs(schedule: Schedule) -> list[tuple[int, tuple[str, ...]]]:
    """The groups that stages with row-wise reductions would make, all outer loops shared."""
    trial = Schedule.replay(schedule.source, schedule.steps)
    group(trial)
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name, (first, depth) in trial.groups.items():
        found[first] = depth, (*found.get(first, (0, ()))[1], name)
    kinds = {s.name: (s.combine is not None, _product(s)) for s in schedule.op.stages}
    return [
        (depth, names)
        for depth, names in found.values()
        if any(kinds[n][0] for n in names) and not any(kinds[n][1] for n in names)
    ]


def _product(s: Stage) -> bool:
    """Whether a stage has tiles worth their shared memory: a product or a convolution."""
    if s.combine is None or len(s.axes) < 2:
        return False
    tensors = {e.buffer for e in walk(s.value) if isinstance(e, Load)}
    return (
        len(tensors) > 1
        and min(s.tensor.shape[-2:]) >= SIDE // 2
        and prod(n for _, n in s.reduce) >= SIDE
    )


def _bind_rest(schedule: Schedule, stage: str, depth: int) -> None:
    """The data loops below the shared ones as one, its turns dealt to threads."""
    rest = [x.name for x in schedule.loops[stage].leaves[depth:] if not x.reduce]
    if not rest:
        return
    whole = rest[0]
    for name in rest[1:]:
        whole = schedule.fuse(stage, whole, name)
    if schedule.loops[stage].leaf(whole).extent > BLOCK_THREADS:
        whole = schedule.split(stage, whole, BLOCK_THREADS)[1]
    schedule.bind(stage, whole, "threadIdx.x")


def _bind_product(schedule: Schedule, s: Stage, cached: bool) -> None:
    name = s.name
    *lead, a, b = [x.name for x in schedule.loops[name].leaves if not x.reduce]
    reduced = [x.name for x in schedule.loops[name].leaves if x.reduce]
    each = 2 if min(s.tensor.shape[-2:]) >= 2 * SIDE else 1
    ao, ai = schedule.split(name, a, SIDE * each)
    bo, bi = schedule.split(name, b, SIDE * each)
    ty, a2 = schedule.split(name, ai, each)
    b2, tx = schedule.split(name, bi, SIDE)
    part = SIDE if len(reduced) == 1 else 4
    ko, ki = schedule.split(name, reduced[0], min(part, s.reduce[0][1]))
    schedule.reorder(name, *lead, ao, bo, ty, tx, ko, ki, *reduced[1:], a2, b2)
    if lead:
        whole = lead[0]
        for one in lead[1:]:
            whole = schedule.fuse(name, whole, one)
        schedule.bind(name, whole, "blockIdx.z")
    for leaf, index in ((ao, "blockIdx.y"), (bo, "blockIdx.x"), (ty, "threadIdx.y"),
                        (tx, "threadIdx.x")):  # fmt: skip
        schedule.bind(name, leaf, index)
    schedule.unroll(name, ki)
    if cached:
        for tensor in dict.fromkeys(e.buffer for e in walk(s.value) if isinstance(e, Load)):
            schedule.cache(name, tensor, ko)
