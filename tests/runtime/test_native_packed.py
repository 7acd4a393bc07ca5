"""Packed weights in the native engine: read as they are by products of few rows."""

import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.errors import ArtefactError
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.runtime.native import execute, products
from paredown.workload import Workload

native = kernels.native()
pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")


class Net(nn.Module):
    """A residual block of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(96, 160), nn.Linear(160, 96)
        self.head = nn.Linear(96, 10, bias=False)

    def forward(self, x):
        return self.head(x + self.down(nn.functional.gelu(self.up(x)))) * 0.5


def packed(rows: int, bits: int, dtype: torch.dtype = torch.float32) -> Workload:
    torch.manual_seed(0)
    work = Workload(Net().eval().to(dtype), (torch.randn(rows, 96).to(dtype),), name="packed")
    step = "weight-only:bits=8" if bits == 8 else "weight-only:bits=4,group_size=32"
    return apply(parse_inline(step), work).workload


def ops(executable) -> list[str]:
    return [s.op for s in executable.plan.steps if s.role]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("isa", native.levels() if native else [])
def test_few_rows_read_packed_weights_and_agree(monkeypatch, isa, bits, dtype):
    monkeypatch.setenv("PAREDOWN_ISA", isa)
    for rows in (1, products.FEW_ROWS):
        work = packed(rows, bits, dtype)
        made = runtime.backend("native").lower(work, threads=2)
        assert ops(made) == ["matvec"] * 3
        loose = 0.03 if dtype is torch.bfloat16 else 1e-5
        eager = work.model(*work.inputs)
        torch.testing.assert_close(made(*work.inputs), eager, atol=loose, rtol=loose)
        held = [r.precision for r in made.executed() if r.op == "weight"]
        assert held == [f"int{bits}"] * 3


def test_held_as_they_are_stored():
    four = runtime.backend("native").lower(packed(1, 4), threads=1)
    float32 = 4 * (2 * 96 * 160 + 960)
    # Half a byte each, and five bytes for a group of 32; the head's ten outputs fill a panel of 16.
    assert four.weight_bytes() < 0.25 * float32


def test_many_rows_multiply_floats():
    many = products.FEW_ROWS + 1
    made = runtime.backend("native").lower(packed(many, 4), threads=2)
    assert ops(made) == ["gemm"] * 3
    work = packed(many, 4)
    torch.testing.assert_close(made(*work.inputs), work.model(*work.inputs), atol=1e-5, rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    backend, work = runtime.backend("native"), packed(2, 4)
    made = backend.lower(work, threads=1)
    made.save(tmp_path)
    loaded = backend.load(tmp_path, threads=1)
    assert torch.equal(loaded(*work.inputs), made(*work.inputs))


def test_shared_weights_are_packed_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    work = Workload(Twice().eval(), (torch.randn(1, 64),))
    made = apply(parse_inline("weight-only"), work).workload
    plan = runtime.backend("native").lower(made, threads=1).plan
    assert [c.pack for c in plan.constants.values()].count("matvec") == 1


def test_a_damaged_constant_is_refused():
    shape = {"bits": 4, "group": 32, "n": 2, "k": 64}
    with pytest.raises(ValueError, match="99 bytes where 84 are needed"):
        execute.packed_parts(shape, torch.zeros(99, dtype=torch.uint8))
    made = runtime.backend("native").lower(packed(1, 8), threads=1)
    weights = {k: v[:-1] if v.dtype is torch.uint8 else v for k, v in made._weights.items()}
    with pytest.raises(ArtefactError, match="is damaged"):
        execute.Runner(made.plan, weights, 1)
