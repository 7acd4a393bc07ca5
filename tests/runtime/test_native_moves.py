"""Windows, shifts, padding and cropping in native plans: tables of rows, no step of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paredown import kernels, runtime
from paredown.nn.window import WindowAttention
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.runtime.gate import gate
from paredown.runtime.native import moves
from paredown.runtime.native.plan import Tensor
from paredown.workload import Workload

pytestmark = pytest.mark.skipif(
    kernels.why_missing() is not None, reason="the native module is not built"
)


class Block(nn.Module):
    """A pre-norm block of window attention, `shift` pixels on."""

    def __init__(self, shift: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 64, 2, 2)
        self.norm = nn.LayerNorm(64)
        self.attn = WindowAttention(64, 2, 4, shift=shift, size=size)
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        return self.out((x + self.attn(self.norm(x))).mean((1, 2)))


def block(shift: int, size: tuple[int, int], batch: int = 2) -> Workload:
    torch.manual_seed(0)
    inputs = (torch.randn(batch, 3, 2 * size[0], 2 * size[1]),)
    return Workload(Block(shift, size).eval(), inputs, name="block")


def lower(workload: Workload) -> Any:
    return runtime.backend("native").lower(workload, threads=1)


CASES = [(0, (8, 12)), (2, (8, 12)), (0, (7, 9)), (2, (7, 9)), (1, (4, 8))]
"""Shifts and maps: that windows divide, that they do not, and one of a single row of windows."""


@pytest.mark.parametrize(("shift", "size"), CASES)
@pytest.mark.parametrize("recipe", ["", "bf16", "static-int8 + bf16"])
def test_window_attention_moves_nothing_alone(
    shift: int, size: tuple[int, int], recipe: str
) -> None:
    workload = block(shift, size)
    if recipe:
        workload = apply(parse_inline(recipe), workload).workload
    executable = lower(workload)
    steps = executable.plan.steps
    assert [s.op for s in steps if s.fallback is not None] == []
    assert [s.op for s in steps if s.op == "copy"] == []
    (norm,) = [s for s in steps if s.op == "norm"]
    assert "in_rows" in norm.constants
    (total,) = [s for s in steps if "a_rows" in s.constants]
    assert (total.op, total.fields["op"]) == ("eltwise", "add")
    seen = gate(executable, workload)
    assert seen.passed, seen


class Rolled(nn.Module):
    """Shifts with nothing around to fold them into, of which two are read twice."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        once = torch.roll(x, (1, -2), (1, 2))
        twice = torch.roll(once, 3, 1)
        return once * 2, twice, once.reshape(2, -1, 24)


def test_rolls_alone_are_gathered_once() -> None:
    workload = Workload(Rolled().eval(), (torch.randn(2, 5, 6, 24),), name="rolled")
    executable = lower(workload)
    assert [s.op for s in executable.plan.steps if s.fallback is not None] == []
    for got, wanted in zip(executable(*workload.inputs), Rolled()(*workload.inputs), strict=True):
        assert torch.equal(got, wanted)


class Flat(nn.Module):
    """A shift over the last dimension, and one of the flattened tensor: not of rows."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.roll(x, 1, -1), torch.roll(x, 5)


def test_what_moves_no_whole_rows_is_left_to_torch() -> None:
    workload = Workload(Flat().eval(), (torch.randn(2, 3, 24),), name="flat")
    executable = lower(workload)
    assert all("rows that are moved" in s.fallback for s in executable.plan.steps if s.fallback)
    for got, wanted in zip(executable(*workload.inputs), Flat()(*workload.inputs), strict=True):
        assert torch.equal(got, wanted)


def test_a_plan_with_tables_comes_back(tmp_path: Path) -> None:
    workload = block(2, (7, 9))
    executable = lower(workload)
    executable.save(tmp_path)
    loaded = runtime.backend("native").load(tmp_path, threads=1)
    assert torch.equal(loaded(*workload.inputs), executable(*workload.inputs))


def test_rows_start_where_the_view_says() -> None:
    whole = torch.arange(2 * 5 * 6 * 8).reshape(2, 5, 6, 8)
    for view in (whole, whole[:, 1:4, ::2], whole.permute(0, 2, 1, 3), whole[:, :, 3]):
        t = Tensor("b", "float32", tuple(view.shape), view.stride(), view.storage_offset())
        made = moves.start(t)
        assert made is not None
        assert made.shape == view.shape
        base = whole.as_strided(made.base.shape, made.base.strides, made.base.offset)
        assert torch.equal(base[made.rows], view)
    turned = whole.transpose(2, 3)
    strange = Tensor("b", "float32", tuple(turned.shape), turned.stride())
    assert moves.start(strange) is None
