"""Reconfigurable designs: the best cut equals all cuts tried; special cases bound it."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from paredown import device, targets
from paredown.cost.reconfigure import (
    SWITCH_S,
    Machine,
    Task,
    dataflow,
    hybrid,
    machine,
    plan_of,
    sequential,
    tasks_of,
)
from paredown.errors import NotApplicable
from paredown.graph.capture import capture


def tasks(seed: int, n: int) -> list[Task]:
    r = random.Random(seed)
    return [
        Task(f"t{i}", r.randint(1, 50), r.randint(0, 40), min(n - 1, i + r.choice([1, 1, 1, 2])),
             r.randint(0, 9), r.random() < 0.3)
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_the_best_cut_is_the_best_of_all(seed: int) -> None:
    n = random.Random(seed).randint(1, 7)
    work = tasks(seed, n)
    for where in (Machine(1e9, 20, 1e8), Machine(1e8, 1000, 1e9), Machine(1e9, 60, 3e8, cores=7)):
        every = [
            tuple(zip((0, *cuts), (*cuts, n), strict=True))
            for k in range(n)
            for cuts in combinations(range(1, n), k)
        ]
        truth = min(plan_of(work, groups, where).seconds for groups in every)
        found = hybrid(work, where)
        assert found.seconds == pytest.approx(truth, rel=1e-12)
        assert plan_of(work, found.groups, where).seconds == pytest.approx(found.seconds)
        assert found.seconds <= sequential(work, where).seconds * (1 + 1e-12)
        assert found.seconds <= dataflow(work, where).seconds * (1 + 1e-12)


def test_results_that_exceed_the_chip_are_streamed() -> None:
    work = [Task("a", 800, 100, 1), Task("b", 800, 0, 1)]
    small, large = Machine(800.0, 10, 1.0), Machine(800.0, 100, 1.0)
    # One by one: a second each, and 90 bytes out and in.
    assert sequential(work, small).seconds == pytest.approx(2 + 180, abs=1e-6)
    # Half of the cores each, and one tile of sixteen to fill the second.
    assert dataflow(work, small).seconds == pytest.approx(2 * (1 + 1 / 16), abs=1e-6)
    assert hybrid(work, small).groups == ((0, 2),)
    assert hybrid(work, large).groups == ((0, 1), (1, 2))
    assert hybrid(work, large).seconds == pytest.approx(2 + 2 * SWITCH_S)


def test_a_task_that_needs_all_of_its_input_stalls_the_stream() -> None:
    work = [Task("a", 800, 100, 1), Task("b", 800, 0, 1, whole=True)]
    # The cores of each wait for the other: twice the time of one by one.
    assert dataflow(work, Machine(800.0, 100, 1.0)).seconds == pytest.approx(4, abs=1e-6)
    assert hybrid(work, Machine(800.0, 100, 1.0)).groups == ((0, 1), (1, 2))
    # And what it waits for is stored.
    assert dataflow(work, Machine(800.0, 10, 1.0)).seconds == pytest.approx(4 + 180, abs=1e-6)


def test_uneven_tasks_share_whole_cores_as_well_as_they_can() -> None:
    work = [Task("a", 700, 0, 0), Task("b", 100, 0, 1)]
    found = dataflow(work, Machine(800.0, 0, 1.0))
    assert found.seconds == pytest.approx((1 + 1 / 16), abs=1e-6)


@pytest.mark.parametrize("name", ["mobilenetv2", "vit-s"])
def test_networks_as_tasks(name: str) -> None:
    graph = capture(targets.resolve(f"zoo:{name}"))
    work = tasks_of(graph)
    assert sum(t.macs for t in work) == graph.macs
    weights = sum(s.nbytes for s in graph.storages.values() if s.kind == "parameter")
    assert sum(t.outside for t in work) >= weights
    assert all(t.until >= i for i, t in enumerate(work))
    assert any(t.whole for t in work) == (name == "vit-s")
    where = machine(device.load("pynq-z2"))
    best = hybrid(work, where).seconds
    assert best <= min(sequential(work, where).seconds, dataflow(work, where).seconds)


def test_a_device_without_on_chip_memory_is_refused() -> None:
    with pytest.raises(NotApplicable, match="one memory level"):
        machine(device.load("a100-sxm"))
