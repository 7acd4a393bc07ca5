"""Places in the arena: buffers that are never alive together share memory.

Greedy by size (Pisarchyk & Lee 2020, arXiv:2001.03288, "greedy by size for offset calculation"):
the largest first, each at the lowest offset free over its lifetime. The most bytes alive at once is
the lower bound that is kept beside it.
"""

from __future__ import annotations

from paredown.runtime.native.plan import Buffer, Plan

ALIGN = 64


def place(plan: Plan) -> None:
    """Give lifetimes and offsets, drop buffers that no step touches, set the arena's size."""
    _lifetimes(plan)
    mine = [b for b in plan.buffers.values() if b.kind == "arena"]
    done: list[Buffer] = []
    for b in sorted(mine, key=lambda b: (-_size(b), b.first)):
        b.offset = _lowest(b, done)
        done.append(b)
    plan.arena_bytes = max((b.offset + _size(b) for b in mine), default=0)
    plan.lower_bound = _bound(mine, len(plan.steps))


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


def _lowest(b: Buffer, done: list[Buffer]) -> int:
    """The lowest offset where ``b`` fits between those placed that live at the same time."""
    beside = [o for o in done if o.first <= b.last and b.first <= o.last]
    at = 0
    for other in sorted(beside, key=lambda o: o.offset):
        if other.offset - at >= _size(b):
            break
        at = max(at, other.offset + _size(other))
    return at


def _bound(buffers: list[Buffer], steps: int) -> int:
    change = [0] * (steps + 1)
    for b in buffers:
        change[b.first] += _size(b)
        change[b.last + 1] -= _size(b)
    live = most = 0
    for c in change:
        live += c
        most = max(most, live)
    return most
