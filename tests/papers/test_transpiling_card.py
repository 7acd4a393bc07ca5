"""HPCTransCompile's card: its subjects exist, its doubt is that of the timing."""

from math import e, exp

import pytest

from paredown.papers.cards import transpiling
from paredown.testing.transpile import written


def test_thirty_operators_and_ten_of_them_at_quick_scale() -> None:
    whole = set(written()) - set(transpiling.LEFT_OUT)
    assert len(whole) == 30
    assert set(transpiling.QUICK) <= whole


def test_the_doubt_is_the_wider_of_interval_and_a_a() -> None:
    times = [
        {"translated": e**3, "spread": (e**2.9, e**3.05), "a_a": 1.0},
        {"translated": e, "spread": (e, e), "a_a": e**-0.3},
    ]
    assert transpiling.geometric(times, "translated") == pytest.approx(e**2)
    assert transpiling.timing_power(times) == pytest.approx(e**2 * (exp(0.2) - 1))
