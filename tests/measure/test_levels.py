"""Knees of a read sweep: known steps are found, noise makes none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from paredown.measure.levels import Step, knees, name_steps, sizes

SETS = sizes(1 << 30)


def _staircase(bounds: list[int], rates: list[float], noise: float, seed: int = 0) -> list[float]:
    """Rates by working set, with multiplicative noise that only ever slows down."""
    rng = np.random.default_rng(seed)
    level = np.searchsorted(bounds, SETS)
    return list(np.asarray(rates)[level] * (1 - noise * rng.random(len(SETS))))


def test_sizes_cover_the_range_in_whole_pages() -> None:
    assert SETS[0] == 16 << 10
    assert SETS[-1] >= 1 << 30
    assert all(s % 4096 == 0 for s in SETS)
    assert all(1.3 < b / a < 1.7 for a, b in pairwise(SETS))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_known_steps_are_found(noise: float, seed: int) -> None:
    bounds = [96 << 10, 4 << 20, 100 << 20]
    rates = [4e11, 2e11, 5e10, 2e10]
    found = knees(SETS, _staircase(bounds, rates, noise, seed))
    assert len(found) == 4
    for step, rate in zip(found, rates, strict=True):
        assert step.bytes_s == pytest.approx(rate, rel=noise + 1e-9)
    for step, bound in zip(found[:-1], bounds, strict=True):
        inside = [s for s in SETS if s <= bound]
        assert step.capacity_bytes == inside[-1]


def test_a_flat_curve_is_one_level() -> None:
    assert len(knees(SETS, [1e10] * len(SETS))) == 1


def test_a_dip_is_lifted_to_what_larger_sets_reach() -> None:
    rates = [1e10] * len(SETS)
    rates[5] = 1e9
    assert knees(SETS, rates) == [Step(SETS[-1], pytest.approx(1e10))]


def test_rates_fall_from_step_to_step() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        found = knees(SETS, list(10 ** rng.uniform(9, 12, len(SETS))))
        falling = [s.bytes_s for s in found]
        assert falling == sorted(falling, reverse=True)


def test_names_are_the_caches_that_hold_a_step() -> None:
    caches = {"L1": 96 << 10, "L2": 4 << 20, "L3": 480 << 20}
    steps = [Step(64 << 10, 4e11), Step(3 << 20, 2e11), Step(24 << 20, 5e10), Step(1 << 30, 2e10)]
    assert name_steps(steps, caches) == ["L1", "L2", "L3", "memory"]
    twice = [Step(8 << 20, 1e11), *steps[2:]]
    assert name_steps(twice, caches) == ["L3 to 8 MiB", "L3 to 24 MiB", "memory"]
    assert name_steps(steps[:1], {}) == ["memory"]
