"""Rules learned from calls: expressions, constraints, the solver; held out calls decide."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paredown.testing.fuzz.call import Call, Spec, label
from paredown.testing.fuzz.expressions import compiled, search
from paredown.testing.fuzz.infer import judged
from paredown.testing.fuzz.learn import draw, learn
from paredown.testing.fuzz.mutate import around, smaller
from paredown.testing.fuzz.partial import PartialOperator, operators
from paredown.testing.fuzz.solve import solve
from paredown.testing.fuzz.trace import recorded

NAMED = (
    "torch.nn.functional.conv2d",
    "torch.nn.functional.max_pool2d",
    "torch.nn.functional.linear",
    "torch.matmul",
    "torch.cat",
    "torch.add",
)


def learned_from(call, seed=0) -> list[PartialOperator]:
    with recorded() as calls:
        call()
    return learn(calls, seed)


def test_a_window_that_moves_by_a_stride_is_found():
    rng = np.random.default_rng(0)
    h, k, s, p = (rng.integers(a, b, 60) for a, b in ((12, 30), (1, 5), (1, 4), (0, 3)))
    symbols = {"h": h, "k": k, "i0": s, "p": p}
    text = search((h + 2 * p - k) // s + 1, symbols, ["h", "k", "i0", "p"])
    assert text is not None
    value = compiled(text)
    for a, b, c, d in ((40, 7, 3, 2), (9, 9, 4, 0), (33, 2, 1, 5)):
        assert value({"h": a, "k": b, "i0": c, "p": d}) == (a + 2 * d - b) // c + 1


def test_what_follows_no_expression_has_none():
    noise = np.random.default_rng(1).integers(1, 10**6, 50)
    x = np.arange(50, dtype=np.int64)
    assert search(noise, {"x": x}, ["x"]) is None


def test_rules_learned_here_hold_for_calls_of_another_seed():
    for call in (
        lambda: torch.matmul(torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
        lambda: F.linear(torch.ones(2, 5, 8), torch.ones(6, 8), torch.ones(6)),
    ):
        (found,) = learned_from(call)
        assert found.rules is not None
        calls = [r.call for r in around(found.calls, 80, 77)]
        seen = judged(found.rules, calls)
        assert seen.wrong == 0
        assert seen.refused > 20
        assert seen.missed <= 0.05 * seen.refused


def test_equal_sizes_are_all_tied():
    """A cover of the invalid calls alone left one of three equal sizes free."""
    (found,) = learned_from(
        lambda: F.layer_norm(torch.ones(2, 3, 6), (6,), torch.ones(6), torch.ones(6))
    )
    right = found.calls[0].symbols()
    assert found.violated(right) == 0
    for s in ("d0_2", "d1_0", "d2_0", "i0"):
        assert found.violated({**right, s: right[s] + 1}), s


def test_an_axis_becomes_part_of_the_signature():
    found = learned_from(lambda: torch.sum(torch.ones(3, 4, 5), 1))
    assert found
    assert all(p.rules is not None and not p.calls[0].ints for p in found)
    assert found[0].shapes(found[0].calls[0].symbols()) == [(3, 5)]


def test_random_and_data_dependent_functions_are_left_out():
    assert learned_from(lambda: F.dropout(torch.ones(4, 4), 0.5, True)) == []
    assert learned_from(lambda: torch.nonzero(torch.ones(4, 4))) == []


def test_a_logarithm_asks_for_inputs_above_zero():
    (found,) = learned_from(lambda: torch.log(torch.ones(3, 4)))
    assert found.positive


@pytest.mark.parametrize("op", NAMED)
def test_committed_rules_predict_calls_that_they_have_not_seen(op):
    found = [p for p in operators() if p.op == op and p.rules is not None]
    assert found, f"{op} has no rules"
    for p in found:
        calls = [r.call for r in around(p.calls, 40, 991, p.positive)]
        seen = judged(p.rules, calls)
        assert seen.wrong == 0, p.rules
        assert seen.missed <= max(2, 0.1 * seen.refused), p.rules


def test_the_solver_keeps_what_is_fixed_and_torch_agrees():
    rng = random.Random(3)
    found = next(p for p in operators() if p.op == NAMED[0] and p.rules is not None)
    drawn = draw(found, 20, rng)
    assert len(drawn) > 10
    agreed = sum(label(replace(c, outs=()), positive=found.positive).outs == c.outs for c in drawn)
    assert agreed >= 0.9 * len(drawn)
    call = solve(found, found.calls[0], {"d0_0": 5}, rng)
    assert call is not None
    assert call.tensors[0].shape[0] == 5


def test_backward_reaches_the_shape_that_is_asked_for():
    rng = random.Random(0)
    found = next(p for p in operators() if p.op == "torch.nn.functional.linear" and p.rules)
    rank = len(found.calls[0].outs[0].shape)
    goal = (2, 3, 4, 5)[:rank]
    call = solve(found, found.calls[0], {}, rng, (0, goal))
    assert call is not None
    assert label(replace(call, outs=())).outs == (Spec(goal),)


def test_large_calls_are_made_small_and_stay_valid():
    call = Call(
        "torch.nn.functional.linear",
        [{"t": 0}, {"t": 1}],
        {},
        (Spec((2, 196, 768)), Spec((3072, 768))),
        (),
    )
    small = smaller(call)
    assert small is not None
    assert small.tensors[0].shape[-1] == small.tensors[1].shape[-1]
    assert max(n for t in small.tensors for n in t.shape) <= 12
