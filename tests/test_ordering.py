"""Order and conflicts follow from stages and touches; the exceptions are few and reasoned."""

import pytest

from paredown import ordering, registry
from paredown.technique import Change, Decisions, Rewrite, Stage, Touches


def kind(name, stage, *touches):
    return type(name, (Rewrite,), {"name": name, "stage": stage, "touches": frozenset(touches)})


PRUNE = kind("prune", Stage.STRUCTURE, Touches.STRUCTURE, Touches.WEIGHT_SHAPE)
RANK = kind("rank", Stage.RANK, Touches.WEIGHT_SHAPE)
INT8 = kind("i8", Stage.NUMERIC, Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE)
INT4 = kind("i4", Stage.NUMERIC, Touches.WEIGHT_DTYPE)


def test_stages_order_and_equal_stages_keep_their_order():
    assert ordering.ordered([INT8, RANK, INT4, PRUNE]) == [PRUNE, RANK, INT8, INT4]


def test_number_formats_exclude_each_other_and_shapes_do_not():
    assert ordering.conflict(PRUNE, RANK, "a:out") is None
    assert (
        ordering.conflict(INT8, INT4, "a:weight")
        == "i8 and i4 both set the weight dtype of a:weight"
    )
    assert "twice" in (ordering.conflict(INT4, INT4, "a:weight") or "")


def test_every_exception_names_known_techniques_and_is_one():
    known = registry.classes()
    for pair, reason in ordering.EXCEPTIONS.items():
        a, b = (known[n] for n in sorted(pair))
        assert a.touches & b.touches & ordering.EXCLUSIVE, f"{pair} needs no exception"
        assert ordering.conflict(a, b, "x:weight") is None
        assert reason


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("fc:weight", "fc:out", True),
        ("fc:weight", "fc2:weight", False),
        (":dtype", "fc:weight", True),
    ],
)
def test_sites_meet_where_their_modules_do(a, b, same):
    assert ordering.same_place(a, b) is same


def test_a_clash_is_found_among_what_was_touched():
    change = Change(None, [], Decisions(), frozenset(), {"a:weight": INT8.touches})
    assert ordering.clash([(INT8, change)], INT4, ["b:weight"]) is None
    assert "a:weight" in (ordering.clash([(INT8, change)], INT4, ["b:weight", "a:weight"]) or "")
