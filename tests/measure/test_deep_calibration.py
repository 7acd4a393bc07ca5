"""Deep calibration: samples are the same each time, kept as they come, gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from paredown.device import Device, Level
from paredown.device.learned import Learned
from paredown.graph.capture import capture
from paredown.measure import deep, learning
from paredown.measure.generate import COUNTS, Sample, samples

DEVICE = Device(
    name="box", title="box", threads=1, how="nominal", elementwise_s=1e10,
    peak_macs_s={"float32": 1e11}, overhead_s={"eager": 1e-6, "eager/run": 2e-6},
    levels=(Level(name="memory", capacity_bytes=1 << 34, read_bytes_s=1e10),),
    sources={"peak_macs_s": "-", "levels": "-"},
)  # fmt: skip
FEW = dict.fromkeys(COUNTS, 1)


def test_samples_are_the_same_for_the_same_seed() -> None:
    def shapes(seed: int) -> list[object]:
        made = [s.make() for s in samples(seed, {"conv": 3, "linear": 3})]
        return [(w.inputs[0].shape, [p.shape for p in w.model.parameters()]) for w in made]

    assert shapes(1) == shapes(1)
    assert shapes(1) != shapes(2)


@pytest.mark.parametrize("kind", COUNTS)
def test_every_kind_makes_a_chain_of_its_kind_that_runs(kind: str) -> None:
    for sample in list(samples(counts={kind: 2})):
        workload = sample.make()
        out = workload.call()
        assert torch.isfinite(out if isinstance(out, torch.Tensor) else out[0]).all()
        assert capture(workload).unpriced == []


def test_backends_that_fuse_get_no_pointwise_chains_but_tails() -> None:
    kinds = [s.kind for s in samples(fused=True)]
    assert "pointwise" not in kinds
    assert kinds.count("norm") < COUNTS["norm"]
    sample = list(samples(counts={"linear": 2}, fused=True))[1]
    assert any("aten::relu" in n.op or "silu" in n.op for n in capture(sample.make()).nodes)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """One small chain of three kinds; what was timed is counted."""
    chosen = [s for s in samples(counts=FEW) if s.kind in ("linear", "norm", "reduction")]
    monkeypatch.setattr(deep, "samples", lambda fused: chosen)
    monkeypatch.setattr(deep, "SECONDS", 0.0)
    return chosen


def test_each_time_is_kept_at_once_and_the_next_run_goes_on(
    few: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chains.jsonl"
    real = deep.alone
    taken: list[int] = []

    def stopped(run: Callable[[], object], seconds: float) -> list[float]:
        if len(taken) == 1:
            raise KeyboardInterrupt
        taken.append(1)
        return real(run, seconds)

    monkeypatch.setattr(deep, "alone", stopped)
    with pytest.raises(KeyboardInterrupt):
        deep.time_samples("eager", DEVICE, path)
    assert len(deep.rows(path)) == 1
    with path.open("a") as out:
        out.write('{"space": 2, "backend": "eag')  # as a crash would leave it
    monkeypatch.setattr(deep, "alone", real)
    deep.time_samples("eager", DEVICE, path)
    rows = deep.rows(path)
    assert [r["sample"] for r in rows] == [s.name for s in few]
    assert all(r["seconds"] > 0 and r["parts"] for r in rows)
    before = path.read_text()
    deep.time_samples("eager", DEVICE, path)
    assert path.read_text() == before, "nothing is timed twice"


def test_curves_stand_beside_the_device_until_versions_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "device-1.json"
    assert learning.read(file) is None
    learned = Learned(curves={}, glue_s={"eager/run": 1e-6})
    learning.keep(learned, DEVICE, file)
    # The figures that they were learned with come along: parts of a time are made of them.
    assert learning.read(file) == DEVICE.model_copy(update={"learned": learned})
    monkeypatch.setattr(learning, "versions", lambda: {"torch": "0"})
    assert learning.read(file) is None


def test_a_damaged_file_of_curves_is_no_calibration(tmp_path: Path) -> None:
    file = tmp_path / "device-1.json"
    learning.learned_at(file).write_text(json.dumps({"schema": 1}))
    assert learning.read(file) is None
