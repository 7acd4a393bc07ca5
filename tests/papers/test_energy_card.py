"""The statistics of the mixed-precision card against scipy and hand counts."""

import numpy as np
import pytest
from scipy import stats

from paredown.measure.energy import Counter, integrate
from paredown.papers.cards import energy
from paredown.papers.cards.energy import Cell, Run


def test_welch_agrees_with_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 9), rng.normal(6, 3, 14)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    t = (a.mean() - b.mean()) / np.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    statistic, p = energy.welch(a, b)
    assert statistic == pytest.approx(t)
    assert p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = energy.welch_half_width(a, b)
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(va + vb))


def test_anova_agrees_with_sums_of_squares():
    cells = [Cell("fp32", 1, 1), Cell("mixed", 1, 1), Cell("fp32", 2, 1)]
    values = [[6.0, 8, 4, 5, 3, 4], [8.0, 12, 9, 11, 6, 8], [13.0, 9, 11, 8, 7, 12]]
    runs = [
        Run(c, i, v, v, 0.9) for c, vs in zip(cells, values, strict=True) for i, v in enumerate(vs)
    ]
    # A textbook example: F = 9.3 on 2 and 15 degrees of freedom.
    assert energy.anova(runs, cells) == pytest.approx(stats.f.sf(9.264705882, 2, 15), rel=1e-6)


def test_holm_steps_down():
    assert energy.holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert energy.holm([0.01, 0.02, 0.04]) == [True, True, True]
    assert energy.holm([0.2, 0.001]) == [False, True]
    assert energy.holm([0.06]) == [False]


def test_hedges_is_zero_between_equals_and_signed():
    a = np.array([1.0, 2, 3, 4])
    assert energy.hedges(a, a) == 0
    # (-2) / deviation 1.2910 * (1 - 3 / 23)
    assert energy.hedges(a, a + 2) == pytest.approx(-2 / 1.29099 * (1 - 3 / 23), rel=1e-4)


def test_comparison_pairs_by_seed_and_setting():
    grid = [(1, 1), (2, 1)]
    runs = [
        Run(Cell(p, b, 1), i, (2.0 if p == "mixed" else 1.0) + 0.01 * i, 0, 0.8 + 0.01 * i * b)
        for b in (1, 2)
        for p in energy.PRECISIONS
        for i in range(4)
    ]
    table, p_values = energy.compare(runs, grid)
    assert [round(row["ratio"], 2) for row in table] == [1.99, 1.99]
    assert all(p < 1e-6 for p in p_values)
    assert energy.paired_gaps(runs, grid) == [0.0] * 8


def test_training_is_seeded():
    one = energy.train(Cell("fp32", 256, 32), 3, 1)
    two = energy.train(Cell("fp32", 256, 32), 3, 1)
    assert one.accuracy == two.accuracy
    assert one.cost > 0


def test_counters_are_read_around_the_training():
    ticks = iter([10.0, 16.0])
    run = energy.train(Cell("mixed", 256, 32), 0, 2, [Counter("fake", lambda: next(ticks))])
    assert run.cost == 3.0


def test_integrator_returns_the_analytic_energy():
    times = np.linspace(0, 4, 4001)
    assert integrate(times, 30 + 5 * times) == pytest.approx(30 * 4 + 5 * 8)
    wave = 50 + 20 * np.sin(2 * np.pi * times)
    assert integrate(times, wave) == pytest.approx(200, rel=1e-6)
