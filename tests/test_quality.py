"""Quality figures: the paired drop and its interval, splits that stay put, fidelity of outputs."""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from paredown import quality
from paredown.errors import InputError


def test_the_drop_is_paired():
    rng = np.random.default_rng(0)
    before = (rng.random(900) < 0.95).astype(float)
    after = before.copy()
    after[:9] = 1 - after[:9]
    lost = float((before - after).mean())
    f = quality.drop(before, after)
    assert f.value == pytest.approx(lost)
    assert f.n == 900
    low, high = f.spread
    assert low <= lost <= high
    # Nine of 900 answers differ: pairing leaves 0.7 %, two independent samples would give 2 %.
    assert high - low < 0.02


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    p = 0.03
    hits = 0
    for seed in range(200):
        lost = (rng.random(400) < p).astype(float)
        low, high = quality.drop(lost, np.zeros(400), seed=seed).spread
        hits += low <= p <= high
    assert 180 <= hits <= 200


def test_the_interval_agrees_with_plain_resampling():
    d = np.repeat([-1.0, 0.0, 1.0], [5, 380, 15])
    rng = np.random.default_rng(0)
    means = d[rng.integers(0, 400, (4000, 400))].mean(1)
    low, high = quality.drop(d, np.zeros(400)).spread
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.003)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.003)


def test_no_difference_is_a_drop_of_zero_for_certain():
    f = quality.drop(torch.ones(50), [1.0] * 50)
    assert (f.value, f.spread) == (0.0, (0.0, 0.0))


def test_two_floats_have_no_interval():
    f = quality.drop(0.95, 0.94)
    assert f.value == pytest.approx(0.01)
    assert f.spread is None
    assert quality.score(0.9).spread is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "NaN"),
        (torch.tensor(math.inf), "infinity"),
        ([1.0, math.nan], "1 NaN or infinite of 2"),
        ([], "no scores"),
        (torch.zeros(2, 2), "shape"),
        ("good", "got str"),
        (None, "NaN|NoneType"),
    ],
)
def test_what_a_judge_may_not_return(value, says):
    with pytest.raises(InputError, match=says):
        quality.scores(value)


def test_scores_that_cannot_be_paired_are_refused():
    with pytest.raises(InputError, match="same examples"):
        quality.drop([1.0, 0.0], [1.0])
    with pytest.raises(InputError, match="float for one"):
        quality.drop([1.0, 0.0], 0.5)


def test_a_judge_that_raises_shows_the_users_line():
    def evaluate(model):
        raise KeyError("labels")

    with pytest.raises(InputError, match=r"evaluate raised KeyError.*test_quality\.py:\d+") as e:
        quality.judge(evaluate, nn.Identity())
    assert "\n" not in str(e.value)


def test_a_judge_runs_in_eval_mode_without_autograd_and_leaves_the_model_as_it_was():
    model = nn.Dropout()

    def evaluate(m):
        assert not m.training
        assert torch.is_inference_mode_enabled()
        return [1.0]

    assert quality.judge(evaluate, model)[0] == 1.0
    assert model.training


def test_a_split_by_hash_stays_put_when_examples_are_added():
    guide, decides = quality.split_by_hash(1000)
    assert sorted([*guide, *decides]) == list(range(1000))
    assert 430 < len(decides) < 570
    more = quality.split_by_hash(2000)[1]
    assert list(more[more < 1000]) == list(decides)
    for n in (2, 3, 5):
        assert all(len(side) for side in quality.split_by_hash(n))
    with pytest.raises(InputError, match="cannot be split"):
        quality.split_by_hash(1)


def test_fidelity_of_numbers_is_one_minus_the_relative_error():
    a = torch.tensor([3.0, 4.0])
    assert quality.fidelity(a, a) == 1.0
    assert quality.fidelity(a, a + torch.tensor([0.3, 0.4])) == pytest.approx(0.9)
    assert quality.fidelity(a, -a) == 0.0
    assert quality.fidelity(a, torch.tensor([3.0, math.nan])) == 0.0


def test_fidelity_of_logits_is_agreement_of_the_first_choice():
    a = torch.eye(4)
    b = a.clone()
    b[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert quality.fidelity(a, b) == 0.75
    assert quality.fidelity({"logits": a[None]}, {"logits": b[None]}) == 0.75
    assert quality.fidelity(a, 100 * a) == 1.0


def test_the_least_faithful_output_counts():
    Out = namedtuple("Out", "hidden ids")
    a = Out(torch.ones(2, 2, 2), torch.tensor([1, 2, 3, 4]))
    b = Out(torch.ones(2, 2, 2), torch.tensor([1, 2, 3, 9]))
    assert quality.fidelity(a, b) == 0.75


def test_infinities_in_the_same_places_are_no_error():
    a = torch.tensor([[[1.0, -math.inf]]])
    assert quality.fidelity(a, a.clone()) == 1.0


def test_outputs_of_other_shape_or_structure_are_refused():
    with pytest.raises(InputError, match="shape"):
        quality.fidelity(torch.ones(2), torch.ones(3))
    with pytest.raises(InputError, match="structure"):
        quality.fidelity({"a": torch.ones(2)}, {"b": torch.ones(2)})
    with pytest.raises(InputError, match="no tensor"):
        quality.fidelity((), ())


def test_compare_runs_both_models_over_all_calls():
    calls = [((torch.full((3,), float(i)),), {}) for i in range(1, 5)]
    f = quality.compare(nn.Identity(), nn.Identity(), calls)
    assert (f.value, f.n, f.spread) == (1.0, 4, (1.0, 1.0))
    with pytest.raises(InputError, match="no inputs"):
        quality.compare(nn.Identity(), nn.Identity(), [])
