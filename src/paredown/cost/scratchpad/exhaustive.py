"""The least traffic by trying everything: the truth that the integer program is held to.

Dijkstra over states after each step: which operators ran, which tensors are in the pad and where,
which have a copy in host memory. For half a dozen operators and pads of a few units.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from paredown.cost.scratchpad.problem import Task

State = tuple[frozenset[int], frozenset[tuple[int, int]], frozenset[int]]


def least_traffic(task: Task, capacity: int) -> int | None:
    """Bytes that the best plan moves, or None where there is no plan; sizes are small integers."""
    start: State = (frozenset(), frozenset(), frozenset(task.given))
    heap: list[tuple[int, int, State]] = [(0, 0, start)]
    best = {start: 0}
    count = 0
    while heap:
        moved, _, state = heapq.heappop(heap)
        if best[state] < moved:
            continue
        done, _, host = state
        if len(done) == len(task.steps) and task.wanted <= host:
            return moved
        for after, cost in _next(task, state, capacity):
            if moved + cost < best.get(after, moved + cost + 1):
                best[after] = moved + cost
                count += 1
                heapq.heappush(heap, (moved + cost, count, after))
    return None


def _next(task: Task, state: State, capacity: int) -> Iterator[tuple[State, int]]:
    done, pad, host = state
    size = task.size
    if len(done) == len(task.steps):
        late = task.wanted - host
        if late <= {x for x, _ in pad}:
            yield (done, pad, host | late), sum(size[x] for x in late)
        return
    for o, step in enumerate(task.steps):
        ready = all(task.makers[x] in done for x in step.reads if x in task.makers)
        if o in done or not ready:
            continue
        for keep in _subsets(sorted(pad)):
            gone = {x for x, _ in pad - keep}
            needed = {
                x
                for x in gone - host
                if x in task.wanted or any(u not in done for u in task.users[x])
            }
            copies = host | needed
            have = {x for x, _ in keep}
            missing = sorted({*step.reads, step.makes} - have)
            fetched = [x for x in missing if x in step.reads]
            if not copies.issuperset(fetched):
                continue
            cost = sum(size[x] for x in (*needed, *fetched))
            for placed in _placed(task, missing, sorted(keep), capacity):
                yield (done | {o}, placed, copies), cost


def _subsets(items: list[tuple[int, int]]) -> Iterator[frozenset[tuple[int, int]]]:
    for mask in range(1 << len(items)):
        yield frozenset(item for i, item in enumerate(items) if mask >> i & 1)


def _placed(
    task: Task, missing: list[int], pad: list[tuple[int, int]], capacity: int
) -> Iterator[frozenset[tuple[int, int]]]:
    """Every way to put the missing tensors beside those that are there."""
    if not missing:
        yield frozenset(pad)
        return
    x, *rest = missing
    for at in range(capacity - task.size[x] + 1):
        if all(at + task.size[x] <= o or o + task.size[y] <= at for y, o in pad):
            yield from _placed(task, rest, [*pad, (x, at)], capacity)
