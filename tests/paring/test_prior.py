"""What the search believes of a cut's loss: surveyed, interpolated, corrected by recoveries."""

import pytest

from paredown.paring.prior import CUT_LOSS, KEPT, NUMERIC_LOSS, Prior
from paredown.search.space import Candidate

SHARES = {"0.25": 0.4, "0.5": 0.7, "0.75": 0.9}


def prior(**given):
    ratios = {("prune", k): {"params": 1 - gone} for k, gone in SHARES.items()}
    ratios |= {("int8", "on"): {}, ("recover", "train"): {}, ("recover", "statistics"): {}}
    return Prior(
        {"latency/eager": 1.0},
        ratios=ratios,
        lossy={"prune": True, "int8": True, "recover": False},
        cuts=frozenset({"prune"}),
        recovers=frozenset({"recover"}),
        **given,
    )


def candidate(prune="off", int8="off", recover="off"):
    return Candidate((("prune", prune), ("int8", int8), ("recover", recover), ("backend", "eager")))


SURVEYED = {("prune", "0.25"): {"drop": 0.02}, ("prune", "0.75"): {"drop": 0.12}}


def test_without_a_survey_the_loss_grows_with_the_cut():
    p = prior()
    assert p(candidate("0.5", recover="train"), "drop") == pytest.approx(CUT_LOSS["train"] * 0.7)
    assert p(candidate("0.5"), "drop") > p(candidate("0.25"), "drop") > 0


def test_a_surveyed_loss_counts_and_one_between_is_interpolated():
    p = prior(surveyed=dict(SURVEYED))
    assert p(candidate("0.75", recover="statistics"), "drop") == pytest.approx(0.12)
    between = 0.02 + 0.1 * (0.7 - 0.4) / (0.9 - 0.4)
    assert p(candidate("0.5", recover="statistics"), "drop") == pytest.approx(between)
    trained = p(candidate("0.5", "on", "train"), "drop")
    assert trained == pytest.approx(KEPT["train"] * between + NUMERIC_LOSS)


def test_a_cut_that_gained_by_chance_is_not_credited():
    p = prior(surveyed={("prune", "0.25"): {"drop": -0.01}})
    assert p(candidate("0.25", recover="statistics"), "drop") == 0


def test_one_recovery_corrects_what_the_others_are_hoped_to_leave():
    p = prior(surveyed=dict(SURVEYED))
    deep = candidate("0.75", recover="train")
    hoped = p(deep, "drop")
    p.observe(candidate("0.5", recover="train"), {"drop": 0.04})
    assert p(deep, "drop") > 1.5 * hoped
    untrained = p(candidate("0.75", recover="statistics"), "drop")
    p.observe(candidate("0.5", recover="statistics"), {"drop": 0.5})
    assert p(candidate("0.75", recover="statistics"), "drop") == untrained


def test_a_loss_of_fidelity_is_learnt_where_nothing_is_scored():
    p = prior(surveyed={("prune", "0.5"): {"fidelity": 0.1}})
    wanted = candidate("0.5", recover="train")
    assert p(wanted, "fidelity") == pytest.approx(1 - KEPT["train"] * 0.1)
    p.observe(wanted, {"fidelity": 1.0})
    assert p(wanted, "fidelity") > 1 - KEPT["train"] * 0.1
