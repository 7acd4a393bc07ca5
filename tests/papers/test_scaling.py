"""Scaling rules: exact exponents, rounding, and what the counted networks do."""

import pytest

from paredown.errors import InputError, UnknownName
from paredown.papers.cards import scaling as card
from paredown.search.scaling import RULES, Rule, Shape, compound, group_width, rule, scaled


@pytest.mark.parametrize(
    ("name", "activations", "params"),
    [
        ("w", 0.5, 1.0),
        ("d", 1.0, 1.0),
        ("r", 1.0, 0.0),
        ("dr", 1.0, 0.5),
        ("dwr", 5 / 6, 2 / 3),
        ("dWr", 0.6, 0.9),
    ],
)
def test_exponents_of_the_paper(name, activations, params):
    assert rule(name).activations == pytest.approx(activations)
    assert rule(name).params == pytest.approx(params)
    assert rule(name).depth + rule(name).width + rule(name).resolution == pytest.approx(1)


def test_compound_family():
    assert compound(1.0) == RULES["w"]
    assert compound(0.0) == RULES["dr"]
    with pytest.raises(InputError):
        Rule(0.5, 0.4, 0.0)
    with pytest.raises(InputError):
        Rule(-0.5, 1.0, 0.5)
    with pytest.raises(UnknownName):
        rule("wd")


def test_rounding():
    assert [group_width(g) for g in (0.6, 2.4, 3, 5.4, 6, 11, 13)] == [1, 2, 4, 4, 8, 8, 16]
    shape = scaled(Shape((1, 2), (24, 50), 30, 8), RULES["dWr"], 4)
    assert all(w % shape.group_width == 0 for w in shape.widths)
    assert shape.resolution % 4 == 0
    assert shape.depths == (1, 2)
    assert scaled(shape, RULES["d"], 1) == shape
    with pytest.raises(InputError):
        scaled(shape, RULES["d"], 0)


def test_work_grows_by_the_scale():
    base = card.counts("regnet", card.TIMED)["macs"]
    for name in card.TIMED_RULES:
        work = card.counts("regnet", scaled(card.TIMED, RULES[name], 4))["macs"]
        assert work / base == pytest.approx(4, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w", "d", "r", "dwr", "dWr"])
@pytest.mark.parametrize("family", sorted(card.COUNTED))
def test_counted_exponents(family, name):
    assert card.exponent_error(family, name) <= card.FastScalingCard.thresholds["exponent_error"]


def test_spearman_prefers_what_orders_latency():
    table = [
        {"network": str(i), "activations": i, "macs": (i * 7) % 5, "latency_s": i**2}
        for i in range(10)
    ]
    assert card.spearman(table, "activations") == pytest.approx(1)
    gain = card.bootstrap_gain(table)
    assert gain.value > 0.5
    assert gain.spread[0] > 0
