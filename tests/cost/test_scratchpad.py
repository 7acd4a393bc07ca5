"""COSMA: the replay holds plans to account, the optimum is that of exhaustive search."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from paredown import targets
from paredown.cost.scratchpad import Plan, Step, Task, baselines, divide, ilp, replay, task_of
from paredown.cost.scratchpad.exhaustive import least_traffic
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture


def random_task(n: int, seed: int) -> Task:
    r = random.Random(seed)
    size = {0: r.randint(1, 3)}
    steps: list[Step] = []
    for i in range(n):
        reads = frozenset(r.sample(list(size), min(len(size), r.choice([1, 1, 2]))))
        size[i + 1] = r.randint(1, 3)
        steps.append(Step(f"o{i}", reads, i + 1))
    used = {x for s in steps for x in s.reads}
    if 0 not in used:
        del size[0]
    wanted = frozenset(x for x in size if x not in used and x)
    return Task(tuple(steps), size, frozenset({0}) & used, wanted)


def skip_chain() -> Task:
    """``a`` is needed again at the end; between, two tensors of 3 pass through."""
    steps = (
        Step("a", frozenset({0}), 1), Step("b", frozenset({1}), 2), Step("c", frozenset({2}), 3),
        Step("d", frozenset({1, 3}), 4),
    )  # fmt: skip
    return Task(steps, {0: 1, 1: 2, 2: 3, 3: 3, 4: 1}, frozenset({0}), frozenset({4}))


def test_a_skip_is_written_and_fetched_where_the_pad_is_short() -> None:
    task = skip_chain()
    assert (task.least, task.peak(), task.compulsory) == (6, 8, 2)
    short = ilp.solve(task, 7)
    assert short is not None
    assert short.optimal
    assert short.traffic == 2 + 2 * 2  # the skip of 2 goes out and comes back
    assert replay(task, short, 7) == short.traffic
    whole = ilp.solve(task, 8)
    assert whole is not None
    assert whole.traffic == task.compulsory
    assert not [x for x in whole.writes if x != 4]
    with pytest.raises(NotApplicable, match="touches 6 B, more than the scratchpad of 5 B"):
        ilp.solve(task, 5)


@pytest.mark.parametrize("seed", [*range(12), 27, 35, 38])
def test_the_optimum_is_that_of_exhaustive_search(seed: int) -> None:
    task = random_task(random.Random(seed).randint(3, 5), seed)
    before: int | None = None
    for capacity in range(task.least, min(task.least + 2, 7) + 1):
        found = ilp.solve(task, capacity)
        assert found is not None
        assert found.optimal
        assert found.traffic == replay(task, found, capacity)
        assert found.traffic == least_traffic(task, capacity)
        assert before is None or found.traffic <= before
        before = found.traffic
        if capacity >= task.peak():
            assert found.traffic == task.compulsory
        for name, other in baselines.every(task, capacity).items():
            assert replay(task, other, capacity) == other.traffic, name
            assert other.traffic >= found.traffic, name
        parted = divide.solve(task, capacity)
        assert replay(task, parted, capacity) == parted.traffic >= found.traffic


def broken(plan: Plan, how: str) -> Plan:
    first = plan.stays[0]
    if how == "missing":
        return replace(plan, stays=plan.stays[1:])
    if how == "outside":
        return replace(plan, stays=(replace(first, offset=99), *plan.stays[1:]))
    if how == "overlap":
        return replace(plan, stays=tuple(replace(s, offset=0) for s in plan.stays))
    if how == "unwritten":
        return replace(plan, writes={})
    return replace(plan, order=plan.order[:-1])


@pytest.mark.parametrize("how", ["missing", "outside", "overlap", "unwritten", "order"])
def test_the_replay_finds_what_is_wrong(how: str) -> None:
    task = skip_chain()
    found = ilp.solve(task, 7)
    assert found is not None
    with pytest.raises(InputError):
        replay(task, broken(found, how), 7)


def test_parts_are_cut_where_one_tensor_is_alive() -> None:
    body = skip_chain()
    again = tuple(Step(s.name, frozenset(x + 4 for x in s.reads), s.makes + 4) for s in body.steps)
    size = dict(body.size) | {x + 4: n for x, n in body.size.items()}
    task = Task((*body.steps, *again), size, frozenset({0}), frozenset({8}))
    pieces = divide.parts(task)
    assert [len(p.steps) for p in pieces] == [1, 3, 1, 3]
    assert all(p.resident for p in pieces[1:])
    whole, parted = ilp.solve(task, 7), divide.solve(task, 7)
    assert whole is not None
    assert whole.traffic == parted.traffic == replay(task, parted, 7) == task.compulsory + 8


def test_inception_moves_less_than_every_baseline() -> None:
    task = task_of(capture(targets.resolve("zoo:inception-v4")))
    capacity = task.least + (task.peak() - task.least) // 2
    found = divide.solve(task, capacity)
    assert replay(task, found, capacity) == found.traffic
    spent = [p.traffic - task.compulsory for p in baselines.every(task, capacity).values()]
    assert 0 < found.traffic - task.compulsory <= 0.5 * min(spent)
    roomy = divide.solve(task, task.peak())
    assert roomy.traffic == task.compulsory
