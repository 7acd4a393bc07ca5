"""Without native code everything still works, and says what is missing."""

from __future__ import annotations

import sys

import pytest

from paredown import kernels
from paredown.measure import calibrate, doctor, energy, fingerprint, memory


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paredown.kernels._native", None)
    kernels._load.cache_clear()
    yield
    monkeypatch.undo()
    kernels._load.cache_clear()


@pytest.mark.usefixtures("absent")
def test_absence_is_said_once_with_its_cure() -> None:
    assert kernels.native() is None
    assert "g++" in (kernels.why_missing() or "")
    assert kernels.isa() == "scalar"
    assert kernels.mallocs_library() is None


@pytest.mark.usefixtures("absent")
def test_doctor_names_what_is_missing() -> None:
    rows = {row.name: row for row in doctor.rows()}
    assert rows["native probes"].state == "missing"
    assert "g++" in (rows["native probes"].fix or "")
    assert rows["malloc interposer"].state == "missing"
    assert rows["instruction sets"].state == "limited"


@pytest.mark.usefixtures("absent")
def test_speed_and_peaks_come_from_numpy_and_torch() -> None:
    speed = fingerprint.speed(0.1)
    assert speed["peak_macs_s"] > 1e8
    assert speed["read_bytes_s"] > 1e8
    peaks, elementwise, how = calibrate._peaks([0], lambda _: None, 0.05)
    assert set(peaks) == {"float64", "float32", "bfloat16"}
    assert min(*peaks.values(), elementwise) > 1e6
    assert "torch" in how
    assert "g++" in how
    assert calibrate._rate("read", 1 << 20, [0]) > 1e8


@pytest.mark.usefixtures("absent")
def test_memory_of_other_runtimes_is_unavailable_with_the_reason() -> None:
    figure = memory.measure(_never, backend="openvino")
    assert figure.how == "unavailable"
    assert "openvino" in (figure.reason or "")
    assert "g++" in (figure.reason or "")


def _never() -> memory.Call:
    raise AssertionError("nothing may be loaded when nothing can be counted")


def test_energy_says_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "absent")
    monkeypatch.setattr(energy, "_nvml", list)
    assert "no RAPL counters" in (energy.why_unavailable() or "")
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert "not readable" in (energy.why_unavailable() or "")
    assert energy.measure(lambda: None).how == "unavailable"
