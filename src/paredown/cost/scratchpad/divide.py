"""COSMA's divide and conquer (arXiv:2311.18246): cut where one tensor is alive, solve, stitch.

At such a cut the tensor stays in the pad: the operator that follows needs it there. Parts whose
tensors all fit need no program. What cannot be stitched into one pad is solved again for a slightly
smaller one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from paredown.cost.arena import place
from paredown.cost.scratchpad import baselines, ilp
from paredown.cost.scratchpad.problem import Plan, Stay, Task, buffers

SHRINK = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8)
"""Shares of the pad that parts are planned for, one after the other until they stitch."""


def parts(task: Task) -> list[Task]:
    """A task cut after every operator whose result is all that later ones need of earlier ones."""
    found: list[Task] = []
    begin, carried = 0, task.resident
    last_use = {x: max(users, default=-1) for x, users in task.users.items()}
    first_use = {x: min(users, default=-1) for x, users in task.users.items()}
    for k, step in enumerate(task.steps):
        over = {
            x for x in task.size
            if last_use[x] > k and (task.makers[x] if x in task.makers else first_use[x]) <= k
        }  # fmt: skip
        end = k == len(task.steps) - 1
        # A result that nothing reads could come last in the part: then no operator is sure to.
        loose = any(not task.users[s.makes] for s in task.steps[begin:k])
        if end or (over == {step.makes} and step.makes not in task.wanted and not loose):
            found.append(_part(task, begin, k + 1, carried))
            begin, carried = k + 1, frozenset({step.makes})
    return found


def _part(task: Task, begin: int, end: int, resident: frozenset[int]) -> Task:
    steps = task.steps[begin:end]
    used = {x for s in steps for x in (*s.reads, s.makes)}
    made = {s.makes for s in steps}
    return Task(
        steps,
        {x: task.size[x] for x in used},
        task.given & used,
        task.wanted & made,
        resident & used,
    )


def solve(task: Task, capacity: int, seconds: float = 30.0) -> Plan:
    """A plan made part by part. Raises ``NotApplicable`` where an operator exceeds the pad.

    ``bound`` is that of the parts added up: a bound of plans that keep the tensors at the cuts.
    """
    task.demand(capacity)
    pieces = parts(task)
    deadline = time.monotonic() + seconds
    best: Plan | None = None
    bound = 0
    for share in SHRINK:
        pad = max(task.least, int(capacity * share))
        done = [_piece(p, pad, max(0.1, deadline - time.monotonic())) for p in pieces]
        found = _stitch(task, pieces, done)
        if share == SHRINK[0]:
            bound = found.bound
        placed = place(buffers(task, [(s.tensor, s.first, s.last) for s in found.stays]),
                       capacity=capacity, seconds=2.0)  # fmt: skip
        if placed.height <= capacity:
            stays = tuple(
                replace(s, offset=placed.offsets[str(i)]) for i, s in enumerate(found.stays)
            )
            best = replace(found, stays=stays, bound=min(bound, found.traffic))
            break
    rest = min(baselines.every(task, capacity).values(), key=lambda p: p.traffic)
    if best is None or rest.traffic < best.traffic:
        return replace(rest, bound=min(rest.traffic, bound))
    return best


def _piece(part: Task, capacity: int, seconds: float) -> Plan:
    """A part: everything stays where that fits, else the program, else the best list plan."""
    if part.peak() <= capacity:
        given = tuple(range(len(part.steps)))
        there = {x: [a <= t <= b for t in given] for x, a, b in part.spans()}
        order, stays, writes, traffic = ilp.read_plan(part, given, there)
        return Plan(order, tuple(Stay(*s, 0) for s in stays), writes, traffic, traffic, "fits")
    found = ilp.solve(part, capacity, seconds)
    if found is not None:
        return found
    rest = baselines.every(part, capacity)
    return min(rest.values(), key=lambda p: p.traffic)


def _stitch(task: Task, pieces: Sequence[Task], plans: Sequence[Plan]) -> Plan:
    """Plans of parts behind each other; a tensor at a cut is one stay."""
    order: list[int] = []
    stays: list[Stay] = []
    writes: dict[int, int] = {}
    begin = 0
    for part, one in zip(pieces, plans, strict=True):
        order += [begin + o for o in one.order]
        writes |= {x: begin + t for x, t in one.writes.items()}
        for s in one.stays:
            if s.tensor in part.resident and s.first == 0 and begin:
                at = next(
                    i for i, e in enumerate(stays)
                    if e.tensor == s.tensor and e.last == begin - 1
                )  # fmt: skip
                stays[at] = replace(stays[at], last=begin + s.last)
            else:
                stays.append(Stay(s.tensor, begin + s.first, begin + s.last, 0))
        begin += len(part.steps)
    traffic = sum(p.traffic for p in plans)
    bound = sum(p.bound for p in plans)
    return Plan(tuple(order), tuple(stays), writes, traffic, bound, "divide and conquer")
