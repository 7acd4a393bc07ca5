"""Peak memory: exact for torch, and for the interposer against known allocations."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.errors import MeasurementError
from paredown.manifest import REBUILT
from paredown.measure import memory
from paredown.workload import Workload

counted = pytest.mark.skipif(kernels.mallocs_library() is None, reason="no interposer built")
MIB = 1 << 20
ROWS, WIDTH, HIDDEN = 32, 256, 1024


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)).eval()


WEIGHTS = 4 * (2 * WIDTH * HIDDEN + WIDTH + HIDDEN)


def test_torch_peak_is_the_hand_count() -> None:
    """The relu's input and output live together; the last layer's output is smaller."""
    model, x = _mlp(), torch.randn(ROWS, WIDTH)
    with torch.inference_mode():
        assert memory.torch_peak(lambda: model(x)) == 2 * ROWS * HIDDEN * 4


def test_torch_peak_counts_what_is_freed_before_it_returns() -> None:
    def run() -> torch.Tensor:
        big = torch.empty(3 * MIB, dtype=torch.uint8)
        size = big.numel()
        del big
        return torch.empty(size // 3, dtype=torch.uint8)

    assert memory.torch_peak(run) == 3 * MIB


def _numpy_blocks() -> tuple[int, int, int, int]:
    mallocs = memory.Mallocs()
    before = mallocs.live()
    block = np.empty(10 * MIB, np.uint8)
    held = mallocs.live() - before
    del block
    after = mallocs.live() - before
    mallocs.reset()
    kept = np.empty(MIB, np.uint8)
    big = np.empty(5 * MIB, np.uint8)
    del big
    peak = mallocs.peak() - before
    del kept
    return held, after, peak, mallocs.live() - before


@counted
def test_blocks_are_counted_and_given_back() -> None:
    held, after, peak, end = memory.CountedJobs().run(_numpy_blocks)
    assert held == pytest.approx(10 * MIB, abs=16384)
    assert after == pytest.approx(0, abs=16384)
    assert peak == pytest.approx(6 * MIB, abs=32768)
    assert end == pytest.approx(0, abs=32768)


def _mappings(path: str) -> dict[str, int]:
    mallocs = memory.Mallocs()
    before = mallocs.live()
    anonymous = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    out = {"anonymous": mallocs.live() - before}
    anonymous.close()
    out["closed"] = mallocs.live() - before
    with open(path, "rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    out["mapped"] = mallocs.live() - before
    mallocs.forget_files()
    out["untouched"] = mallocs.file_bytes()
    out["sum"] = sum(mapped[i] for i in range(0, 2 * MIB, 4096))
    out["touched"] = mallocs.file_bytes()
    mapped.close()
    return out


@counted
def test_mapped_files_count_by_the_pages_that_are_touched(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\1" * (8 * MIB))
    got = memory.CountedJobs().run(_mappings, str(path))
    assert got["anonymous"] == pytest.approx(8 * MIB, abs=16384)
    assert got["closed"] == pytest.approx(0, abs=16384)
    assert got["mapped"] == pytest.approx(0, abs=16384)
    assert got["untouched"] == 0
    assert got["sum"] == 2 * MIB // 4096
    # The kernel maps a few neighbouring pages at each fault.
    assert 2 * MIB <= got["touched"] <= 3 * MIB


def test_counters_need_the_interposer() -> None:
    with pytest.raises(MeasurementError, match="without the malloc interposer"):
        memory.Mallocs()


def _load(name: str, folder: str) -> memory.Call:
    x = torch.randn(ROWS, WIDTH)
    source = Workload(model=_mlp(), inputs=(x,)) if name in REBUILT else None
    executable = runtime.backend(name).load(Path(folder), threads=1, workload=source)
    return executable, (x,), {}


@pytest.mark.parametrize("name", ["eager", "native", "openvino", "onnxruntime"])
def test_an_artefact_s_peak_is_weights_and_activations(name: str, tmp_path: Path) -> None:
    if name not in memory.TORCH and kernels.mallocs_library() is None:
        pytest.skip("no interposer built")
    lack = runtime.backend(name).available()
    if lack is not None:
        pytest.skip(lack)
    workload = Workload(model=_mlp(), inputs=(torch.randn(ROWS, WIDTH),))
    runtime.backend(name).lower(workload, threads=1).save(tmp_path)
    figure = memory.measure(_load, name, str(tmp_path), backend=name)
    assert figure.how == "measured"
    activations = 2 * ROWS * HIDDEN * 4
    if name == "eager":
        assert figure.value == WEIGHTS + activations
    else:
        # Weights once (a second, repacked copy would show), some activations, and bookkeeping.
        assert WEIGHTS <= figure.known() <= 1.25 * WEIGHTS + activations + 2 * MIB
