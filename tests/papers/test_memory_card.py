"""COSMA's card: its tasks are sound, its rows are right on small ones, its rules count."""

from __future__ import annotations

from dataclasses import replace

from paredown.cost.scratchpad import baselines
from paredown.papers.cards.memory import CosmaCard, broken, growths, reductions, small, wired


def test_the_thresholds_are_those_of_the_entry() -> None:
    assert CosmaCard.thresholds["mean_reduction"] == 0.5
    assert CosmaCard.thresholds["divide_and_conquer_over_program"] == 0.1
    assert sum(CosmaCard.thresholds.values()) == 0.6


def test_tasks_are_graphs_in_a_valid_order() -> None:
    for task in [*map(small, range(20)), *(wired(seed, 9) for seed in range(5))]:
        known = set(task.given)
        for step in task.steps:
            assert step.reads <= known
            known.add(step.makes)
        assert known == set(task.size)
        assert task.wanted <= known - task.given
        assert task.least <= task.peak()


def test_a_row_holds_ours_against_the_baselines() -> None:
    card = CosmaCard()
    assert card.off(small(3)) == 0
    for row in card.pads("wired", wired(1, 6), 10.0):
        assert row["broken"] == row["worse"] == row["extra_at_peak"] == 0
        assert row["program_optimal"]
        assert 0 <= row["extra"] <= row["best_extra"] <= row["worst_extra"]
        assert row["program"] == row["compulsory"] + row["extra"]


def test_a_plan_that_counts_wrongly_is_broken() -> None:
    task = wired(1, 6)
    good = baselines.every(task, task.peak())["given, lru"]
    assert broken(task, [good], task.peak()) == 0
    assert broken(task, [replace(good, traffic=good.traffic + 1)], task.peak()) == 1
    assert broken(task, [replace(good, stays=())], task.peak()) == 1


def test_growths_and_means_go_by_task() -> None:
    rows = [{"task": "a", "extra": 5, "r": 1.0}, {"task": "a", "extra": 6, "r": 0.0},
            {"task": "b", "extra": 9, "r": 1.0}, {"task": "b", "extra": 9, "r": 1.0}]  # fmt: skip
    assert growths(rows) == 1
    assert reductions(rows, "r") == [0.5, 1.0]
