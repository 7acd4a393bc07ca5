"""Calibration: kept by fingerprint, made again when the machine changed, provisional when busy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paredown import device
from paredown.device.files import problems
from paredown.measure import calibrate, operators
from paredown.measure import fingerprint as machine
from paredown.result import Fingerprint


class Machine:
    """A stand-in for the measured parts: what they return, and how often they were asked."""

    def __init__(self) -> None:
        self.busy, self.speed = 0.0, {"peak_macs_s": 1e11, "read_bytes_s": 2e10}
        self.measured = 0
        self.said: list[str] = []

    def fingerprint(self, probe: bool = True) -> Fingerprint:
        return Fingerprint(
            cpu="made up", isa=["avx2"], caches={"L1": 1 << 15}, cores=2, memory_bytes=1 << 30,
            kernel="6", versions=machine.versions(), probe=dict(self.speed) if probe else {},
        )  # fmt: skip

    def measure(self, say: calibrate.Say, *, busy: float) -> device.Device:
        self.measured += 1
        sources = {"levels": "made up"}
        if busy > calibrate.BUSY:
            sources[calibrate.PROVISIONAL] = f"others kept {busy:.0%} of the cores busy"
        return device.Device(
            name="this", title=f"measurement {self.measured}", threads=2, how="measured",
            peak_macs_s={"float32": 1e11}, elementwise_s=1e11, overhead_s={"eager": 1e-6},
            levels=(device.Level(name="memory", capacity_bytes=1 << 30, read_bytes_s=2e10),),
            sources=sources,
        )  # fmt: skip

    def this(self, refresh: bool = False) -> device.Device:
        """As a new process would ask."""
        calibrate._known.cache_clear()
        return calibrate.this(refresh)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine()
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "fingerprint", made.fingerprint)
    monkeypatch.setattr(machine, "others", lambda: made.busy)
    monkeypatch.setattr(machine, "speed", lambda: dict(made.speed))
    monkeypatch.setattr(calibrate, "measure", made.measure)
    monkeypatch.setattr(calibrate, "_say", made.said.append)
    yield made
    calibrate._known.cache_clear()


def test_measured_once_and_kept(here: Machine) -> None:
    assert calibrate.state()[0] == "missing"
    first = here.this()
    assert here.this() == first
    assert here.measured == 1
    assert calibrate.state()[0] == "ok"
    assert here.said == []


def test_load_this_is_the_calibration(here: Machine) -> None:
    calibrate._known.cache_clear()
    assert device.load("this").title == "measurement 1"


def test_refresh_measures_again(here: Machine) -> None:
    here.this()
    assert here.this(refresh=True).title == "measurement 2"
    assert here.this().title == "measurement 2"


@pytest.mark.parametrize(
    ("factor", "again"), [(0.85, False), (1.15, False), (0.7, True), (1.3, True)]
)
def test_a_probe_off_by_a_fifth_measures_again_and_says_so(
    here: Machine, factor: float, again: bool
) -> None:
    here.this()
    here.speed["read_bytes_s"] *= factor
    here.this()
    assert here.measured == (2 if again else 1)
    assert len(here.said) == (1 if again else 0)
    assert not again or "read_bytes_s" in here.said[0]


def test_other_versions_measure_again(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.this()
    monkeypatch.setattr(machine, "versions", lambda: {"torch": "99"})
    assert calibrate.state()[0] == "limited"
    here.this()
    assert here.measured == 2
    assert "torch" in here.said[0]


def test_a_busy_machine_gives_a_provisional_calibration(here: Machine) -> None:
    here.busy = 0.9
    assert calibrate.PROVISIONAL in here.this().sources
    assert "90%" in here.said[0]
    assert calibrate.state()[0] == "limited"
    here.this()
    assert here.measured == 1, "still busy: measuring again would be no better"
    here.busy = 0.0
    assert calibrate.PROVISIONAL not in here.this().sources
    assert here.measured == 2
    assert calibrate.state()[0] == "ok"


def test_a_busy_machine_keeps_a_good_calibration(here: Machine) -> None:
    good = here.this()
    here.busy, here.speed["peak_macs_s"] = 0.9, 1e10
    assert here.this() == good
    assert here.measured == 1


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', '{"schema": 2}', "[]", "null"])
def test_a_damaged_cache_is_made_again(here: Machine, damage: str) -> None:
    here.this()
    calibrate.cached_at(here.fingerprint()).write_text(damage)
    assert here.this().title == "measurement 2"


def test_a_cached_figure_out_of_range_is_made_again(here: Machine) -> None:
    here.this()
    path = calibrate.cached_at(here.fingerprint())
    data = json.loads(path.read_text())
    data["device"]["peak_macs_s"]["float32"] = -1.0
    path.write_text(json.dumps(data))
    assert here.this().title == "measurement 2"


def test_one_backend_is_measured_through_its_own_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    small = operators._linear(64, 32)
    monkeypatch.setattr(operators, "cases", lambda: [small])
    monkeypatch.setattr(operators, "SECONDS", 0.02)
    # A peak far above what any machine reaches, so that no share is cut off at 1.
    reached = operators.measure("eager", {"float32": 1e15}, 1)
    assert reached.failed == {}
    assert set(reached.efficiency) == {"linear/float32"}
    assert 0 < reached.efficiency["linear/float32"] < 0.1
    assert reached.overhead_s is not None
    assert 1e-7 < reached.overhead_s < 1e-2


def test_a_share_is_work_over_peak_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = operators.Case("linear", lambda: None, (1,), macs=1000, layers=10)  # type: ignore[arg-type]
    monkeypatch.setattr(operators, "cases", lambda: [case])
    monkeypatch.setattr(operators, "_cost_of_a_call", lambda *_: (1e-3, 5e-3))
    monkeypatch.setattr(operators, "_chain", lambda *_: lambda: 0.055)
    reached = operators.measure("eager", {"float32": 1e6}, 1)
    # 55 ms less 5 ms per run and 10 x 1 ms per call leave 40 ms for 10 ms worth of work.
    assert reached.efficiency["linear/float32"] == pytest.approx(0.25)


def test_a_missing_backend_is_told_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def available(self) -> str:
            return "not installed"

    monkeypatch.setattr(operators, "backend_named", lambda _: Absent())
    reached = operators.measure("openvino", {"float32": 1e9}, 1)
    assert reached.failed == {"": "not installed"}
    assert reached.efficiency == {}


def test_macs_of_the_cases_equal_the_graph_s() -> None:
    import torch
    from torch import nn

    from paredown.graph.capture import capture
    from paredown.workload import Workload

    for case in operators.cases():
        model = nn.Sequential(case.make()).eval()
        graph = capture(Workload(model=model, inputs=(torch.zeros(case.shape),)))
        assert graph.macs == case.macs, case.kind


@pytest.mark.slow
def test_this_machine_for_real() -> None:
    """The whole calibration: under its minute on an idle machine, and a sound device."""
    import time

    busy = machine.others()
    start = time.perf_counter()
    found = calibrate.measure(busy=busy)
    seconds = time.perf_counter() - start
    assert busy > calibrate.BUSY or seconds < 60
    assert list(problems(found)) == []
    assert found.peak_macs_s["float32"] > 1e9
    assert len(found.levels) >= 2
    assert 0 < found.overhead_s["eager"] < 1e-3
    assert {"eager/conv/float32", "eager/linear/float32"} <= set(found.efficiency)
