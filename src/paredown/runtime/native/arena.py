"""Places in the arena: buffers that are never alive together share memory.

The heuristics of `cost.arena`: greedy by size (Pisarchyk & Lee 2020, arXiv:2001.03288) and, where
that misses the most bytes alive at once, other orders. That lower bound is kept beside the arena.
"""

from __future__ import annotations

from math import inf

from paredown.cost import arena
from paredown.runtime.native.plan import Buffer, Plan

ALIGN = 64


def place(plan: Plan) -> None:
    """Give lifetimes and offsets, drop buffers that no step touches, set the arena's size."""
    _lifetimes(plan)
    mine = [b for b in plan.buffers.values() if b.kind == "arena"]
    blocks = [arena.Buffer(b.name, b.first, b.last + 1, _size(b)) for b in mine]
    # No clock: the same network gets the same plan everywhere.
    placed = arena.place(blocks, exact=False, seconds=inf)
    for b in mine:
        b.offset = placed.offsets[b.name]
    plan.arena_bytes = placed.height
    plan.lower_bound = placed.load


def _size(b: Buffer) -> int:
    return (b.nbytes + ALIGN - 1) // ALIGN * ALIGN


def _lifetimes(plan: Plan) -> None:
    seen: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(plan.steps):
        for t in step.tensors.values():
            first, _ = seen.get(t.buffer, (i, i))
            seen[t.buffer] = (first, i)
    for name, b in list(plan.buffers.items()):
        if name in seen:
            b.first, b.last = seen[name]
        elif b.kind == "arena":
            del plan.buffers[name]
