"""Sparse weights in the native engine: which products take them, and that results stay the same."""

import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.runtime.native import sparse
from paredown.workload import Workload

native = kernels.native()
pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
LEVELS = ["avx512", "avx512_vnni", "amx"]


class Net(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.up, self.down = nn.Linear(256, 512), nn.Linear(512, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(x + self.down(self.up(x).relu()))


def workload(dtype: torch.dtype, rows: int = 64, share: float = 0.9) -> Workload:
    torch.manual_seed(0)
    net = Net(rows).eval()
    for layer in (net.up, net.down):
        w = layer.weight.data
        keep = torch.rand(w.shape[0] // 16, w.shape[1] // 32) >= share
        w *= keep.repeat_interleave(16, 0).repeat_interleave(32, 1)
    return Workload(net.to(dtype), (torch.randn(rows, 256).to(dtype),))


def kernel_of(executable, site: str) -> str:
    (row,) = [r for r in executable.executed() if r.site == site and r.op != "weight"]
    return row.op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", LEVELS)
def test_sparse_layers_run_by_sparse_kernels_and_agree(monkeypatch, isa, dtype):
    if isa not in native.levels():
        pytest.skip(f"no {isa} here")
    monkeypatch.setenv("PAREDOWN_ISA", isa)
    sparse_run = runtime.backend("native").lower(workload(dtype), threads=2)
    dense_run = runtime.backend("native").lower(workload(dtype, share=0.0), threads=2)
    laws = sparse.LAWS.get((isa, str(dtype)[6:]), {})
    for site in ("up", "down"):
        wanted = (
            f"sparse_{'tiles' if 'tiles' in laws else 'lanes'}_{isa}" if laws else f"gemm_{isa}"
        )
        assert kernel_of(sparse_run, site) == wanted
        assert kernel_of(dense_run, site) == f"gemm_{isa}"
    assert kernel_of(sparse_run, "head") == f"gemm_{isa}"
    if laws:
        assert sparse_run.weight_bytes() < 0.4 * dense_run.weight_bytes()
    own = workload(dtype)
    torch.testing.assert_close(
        sparse_run(*own.inputs),
        own.call(),
        rtol=2e-2,
        atol=2e-2 if dtype is torch.bfloat16 else 1e-4,
    )


def test_a_saved_plan_runs_the_same_kernels_to_the_bit(tmp_path):
    own = workload(torch.bfloat16)
    run = runtime.backend("native").lower(own, threads=1)
    run.save(tmp_path)
    again = runtime.backend("native").load(tmp_path, threads=1)
    assert [r.op for r in again.executed()] == [r.op for r in run.executed()]
    assert torch.equal(again(*own.inputs), run(*own.inputs))


def test_few_rows_stay_dense(monkeypatch):
    run = runtime.backend("native").lower(workload(torch.float32, rows=sparse.ROWS - 1), threads=1)
    assert kernel_of(run, "up").startswith("gemm_")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 9, 64])
def test_few_rows_of_streamed_weights_take_masks_and_keep_the_bits(monkeypatch, rows, dtype):
    isa = "amx"
    if isa not in native.levels():
        pytest.skip(f"no {isa} here")
    monkeypatch.setenv("PAREDOWN_ISA", isa)
    torch.manual_seed(0)
    net = Net(rows).eval()
    for layer in (net.up, net.down):
        layer.weight.data *= torch.rand_like(layer.weight) >= 0.9
    own = Workload(net.to(dtype), (torch.randn(rows, 256).to(dtype),))
    in_cache = runtime.backend("native").lower(own, threads=2)
    monkeypatch.setattr(sparse, "STREAMED", 1)
    streamed = runtime.backend("native").lower(own, threads=2)
    monkeypatch.setattr(sparse, "LAWS", {})
    dense = runtime.backend("native").lower(own, threads=2)
    assert "masked" not in kernel_of(in_cache, "up")
    if rows < 64 or dtype is torch.bfloat16:
        assert kernel_of(streamed, "up") == f"sparse_masked_{isa}"
        assert streamed.weight_bytes() < 0.3 * dense.weight_bytes()
        assert torch.equal(streamed(*own.inputs), dense(*own.inputs))
    assert kernel_of(streamed, "head") == f"gemm_{isa}"


def test_filled_blocks_are_counted_with_those_at_the_edge():
    weight = torch.zeros(20, 70)
    weight[17, 69] = weight[0, 0] = weight[1, 1] = 1
    assert sparse.Law(16, 32, 1, 0, 0).filled(weight) == pytest.approx(2 / 6)
    assert sparse.Law(1, 1, 1, 0, 0).filled(weight) == pytest.approx(3 / 1400)
    assert sparse.Law(16, 32, 2, 7, 10).time(weight, 32) == pytest.approx(2 / 3 + 0.1 + 0.5)
    assert sparse.masked(2, 0.25, 0.01).time(weight, 3) == pytest.approx(6 / 1400 + 0.28)


@pytest.mark.parametrize(("isa", "dtype"), sorted(sparse.LAWS))
def test_dense_weights_and_scattered_half_precision_zeros_stay_dense(isa, dtype):
    torch.manual_seed(0)
    weight = torch.randint(1, 100, (256, 512)).to(getattr(torch, dtype))
    many, one = (64, 128), (1, 1)
    assert sparse.form_of(weight, isa, many, streamed=True) is None
    assert sparse.form_of(weight, isa, one, streamed=True) is None
    scattered = torch.where(torch.rand(256, 512) < 0.6, torch.zeros_like(weight), weight)
    assert sparse.form_of(scattered, isa, many, streamed=True) is None
    assert sparse.form_of(torch.zeros_like(weight), isa, many, streamed=False) is not None
    assert sparse.form_of(torch.zeros_like(weight), isa, (1, 128), streamed=True) is None
