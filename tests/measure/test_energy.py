"""Energy: the integrator is exact on analytic curves, idle is subtracted, counters wrap."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from paredown.errors import InputError
from paredown.measure import energy


def test_constant_power_is_power_times_time() -> None:
    assert energy.integrate([0.0, 0.5, 3.0], [12.0] * 3) == 36.0


def test_a_ramp_is_exact_whatever_the_spacing() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 4, 30))
    watts = 3 + 2 * times
    expected = 3 * (times[-1] - times[0]) + times[-1] ** 2 - times[0] ** 2
    assert energy.integrate(times, watts) == pytest.approx(expected, rel=1e-12)


def test_a_sine_converges_quadratically() -> None:
    def error(n: int) -> float:
        t = np.linspace(0, math.pi, n + 1)
        return abs(energy.integrate(t, np.clip(np.sin(t), 0, None)) - 2.0)

    assert error(100) < 2e-4
    assert error(100) / error(200) == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    ("times", "watts", "words"),
    [
        ([0.0], [1.0], "at least 2"),
        ([0.0, 1.0], [1.0], "one length"),
        ([0.0, 0.0], [1.0, 1.0], "strictly increase"),
        ([0.0, 1.0], [1.0, -1.0], "negative"),
        ([0.0, 1.0], [1.0, math.nan], "finite"),
    ],
)
def test_integrate_refuses_nonsense(times: list[float], watts: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        energy.integrate(times, watts)


def test_carbon_is_energy_times_intensity() -> None:
    assert energy.carbon_g(3.6e6) == 481.0
    assert energy.carbon_g(7.2e6, "france", pue=1.5) == pytest.approx(2 * 56 * 1.5)
    with pytest.raises(InputError, match="unknown grid 'atlantis'"):
        energy.carbon_g(1.0, "atlantis")
    with pytest.raises(InputError, match="pue"):
        energy.carbon_g(1.0, pue=0.9)


def test_idle_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up machine draws 10 W, and every run 0.5 J more."""
    monkeypatch.setattr(energy, "WINDOW_S", 0.1)
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        time.sleep(0.002)

    counter = energy.Counter("made up", lambda: 10 * time.perf_counter() + 0.5 * runs)
    figure = energy.measure(run, counters=[counter])
    assert figure.how == "measured"
    assert figure.unit == "J"
    assert figure.n == energy.WINDOWS
    assert figure.known() == pytest.approx(0.5, rel=0.05)


def test_a_counter_that_wraps_is_mended() -> None:
    counter = energy.Counter("wraps", lambda: 5.0, wraps_j=100.0)
    assert counter.since(98.0) == 7.0
    assert counter.since(2.0) == 3.0


def test_rapl_packages_are_read_without_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, joules in (("intel-rapl:0", 3e6), ("intel-rapl:1", 4e6), ("intel-rapl:0:0", 9e6)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{joules:.0f}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    found = energy._rapl()
    assert [c.name for c in found] == ["intel-rapl:0", "intel-rapl:1"]
    assert [c.read() for c in found] == [3.0, 4.0]
    assert found[0].wraps_j == pytest.approx(262143.32885)
