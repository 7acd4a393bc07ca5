"""The protocol finds known ratios and does not invent differences."""

import time

import numpy as np

from paredown.measure import compare
from paredown.measure.compare import interleave, latency, paired_ratio, stable_part


def spin(seconds):
    def run():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            continue

    return run


def test_known_ratio_is_found_and_equal_subjects_tie():
    c = interleave([("base", spin(1e-3)), ("half", spin(0.5e-3)), ("same", spin(1e-3))], seconds=1)
    assert abs(c["half"].ratio.value - 0.5) < 0.1
    assert c["same"].ratio.spread[0] <= 1.03
    assert c["same"].ratio.spread[1] >= 0.97
    assert abs(c.a_a.value - 1) < 0.1
    assert c["base"].latency.value >= 1e-3
    assert c["base"].latency.quantiles["p99"] >= c["base"].latency.quantiles["p50"]


def test_unstable_start_of_a_burst_is_discarded():
    assert stable_part([5.0, 2.0, 1.0, 1.0, 1.1, 1.0], 3) == [1.0, 1.0, 1.1, 1.0]
    assert len(stable_part([1.0, 9.0, 9.0, 9.0], 3)) >= 3


def test_a_long_run_is_a_burst_of_its_own(monkeypatch):
    monkeypatch.setattr(compare, "LONG_S", 1e-3)
    made = []

    def run():
        made.append(spin(2e-3)())

    c = interleave([("long", run)], seconds=0)
    assert c["long"].latency.n == c.a_a.n == compare.MIN_HALVES
    assert len(made) == 2 * (2 + compare.MIN_HALVES)


def test_ratio_interval_covers_the_noise():
    rng = np.random.default_rng(0)
    base = 1 + 0.1 * rng.random(50)
    f = paired_ratio(0.8 * base, base)
    assert abs(f.value - 0.8) < 1e-9
    noisy = paired_ratio(base * (0.8 + 0.05 * rng.standard_normal(50)), base)
    assert noisy.spread[0] < 0.8 < noisy.spread[1]


def test_latency_names_what_its_quantiles_are_over():
    f = latency([1.0, 2.0, 3.0])
    assert f.over == "repeats"
    assert f.n == 3
