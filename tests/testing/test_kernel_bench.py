"""The kernel bench: the reference passes, every planted bug is found, a user's file plugs in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paredown import kernels
from paredown.errors import InputError, UnknownName
from paredown.testing.bench import BACKENDS, CATEGORIES, KernelBackend, judge, summary, tasks
from paredown.testing.bench.backends import from_file
from paredown.testing.bench.judge import Verdict, compare
from paredown.testing.bench.mutants import MUTANTS, own_kernel
from paredown.testing.bench.task import Task, add


def named(name: str) -> Task:
    """A task by name."""
    return tasks([name])[0]


def test_every_category_has_tasks_that_the_reference_passes() -> None:
    all_tasks = tasks()
    assert {t.category for t in all_tasks} == set(CATEGORIES)
    verdicts = [judge(t, BACKENDS["eager"]) for t in all_tasks]
    assert {v.outcome for v in verdicts} == {"correct"}
    assert all(v.error in (None, 0.0) for v in verdicts)


def test_inputs_are_different_sets_and_the_same_again() -> None:
    task = named("gather-rows")
    first, second = task.inputs(3), task.inputs(3)
    assert all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("name", list(MUTANTS))
def test_every_planted_bug_is_found(name: str) -> None:
    for task in ("softmax", "linear", "layer-norm"):
        assert judge(named(task), KernelBackend("own", own_kernel)).outcome == "correct"
        found = judge(named(task), KernelBackend(name, MUTANTS[name]))
        assert found.outcome in ("wrong", "framework"), (task, found)
        assert found.reason
        assert found.ratio is None


def test_what_cannot_be_made_or_raises_is_told_in_one_line() -> None:
    def never(_task: Task, _threads: int) -> Any:
        raise ValueError("no such kernel\nsecond line")

    def raises(_task: Task, _threads: int) -> Callable[..., Tensor]:
        def kernel(*_: Tensor) -> Tensor:
            raise RuntimeError("bad address")

        return kernel

    made = judge(named("relu"), KernelBackend("never", never))
    ran = judge(named("relu"), KernelBackend("raises", raises))
    assert (made.outcome, made.reason) == ("no kernel", "ValueError: no such kernel")
    assert (ran.outcome, ran.reason) == ("raised", "RuntimeError: bad address")
    rows = summary([made, ran])
    assert [(r["backend"], r["compile"], r["pass"]) for r in rows if r["category"] == "all"] == [
        ("never", 0.0, 0.0),
        ("raises", 1.0, 0.0),
    ]


def test_comparison_knows_shapes_dtypes_integers_and_nan() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf")])
    assert compare([x], [x.clone()], 1e-4) is None
    assert "finite" in str(compare([torch.ones(3)], [x], 1e-4))
    assert "float64" in str(compare([x.double()], [x], 1e-4))
    assert "2 of 3" in str(compare([torch.tensor([1, 0, 0])], [torch.tensor([1, 2, 3])], 1e-4))
    assert "results" in str(compare([], [x], 1e-4))


def test_the_summary_counts_shares_of_all_tasks() -> None:
    fast = Verdict("a", "loss", "b", "correct", ratio=2.0)
    slow = Verdict("c", "loss", "b", "correct", ratio=0.5)
    none = Verdict("d", "loss", "b", "no kernel")
    wrong = Verdict("e", "loss", "b", "wrong")
    row = next(r for r in summary([fast, slow, none, wrong]) if r["category"] == "loss")
    assert (row["compile"], row["pass"], row["speedup_1"]) == (0.75, 0.5, 0.25)
    assert row["ratio"] == pytest.approx(1.0)


def test_a_users_file_plugs_in(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def make(task, threads):\n    return task.reference()\n")
    backend = from_file(f"mine={path}:make")
    assert judge(named("relu"), backend).outcome == "framework"
    for text in ("mine", f"mine={path}:nothing", "mine=absent.py:make"):
        with pytest.raises(InputError):
            from_file(text)
    with pytest.raises(UnknownName):
        tasks(["no-such-category"])
    with pytest.raises(InputError):
        add(named("relu"))


def test_the_native_engine_is_right_wherever_it_computes() -> None:
    if kernels.native() is None:
        pytest.skip("no native engine here")
    for name in ("conv-3x3", "layer-norm", "adam", "cumulative-sum"):
        found = judge(named(name), BACKENDS["native"])
        assert found.outcome == ("framework" if name == "cumulative-sum" else "correct"), found
    assert judge(named("adam"), BACKENDS["native"]).framework == ("aten::div", "aten::sqrt")
