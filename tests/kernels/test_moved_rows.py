"""Norms and elementwise steps that read rows in another order, against the same over rows moved first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import POISON, call, guarded, native, rows
from test_products import FAST, close

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8
TABLE = torch.tensor([4, 4, -1, 0, 7, 1, -1, 2, 6, 3, 5], dtype=torch.int32)
COUNT, GIVEN = len(TABLE), 9  # row 8 is never read


def moved(x: torch.Tensor, fill: float) -> torch.Tensor:
    """Rows as the table names them, `fill` where it names none."""
    out = x[TABLE.clamp(min=0).long()].clone()
    out[TABLE < 0] = fill
    return out


def written(
    isa: str, op: str, given: dict[str, Any], columns: int, out: torch.dtype
) -> torch.Tensor:
    """What an operator writes, and that it writes nothing between rows."""
    to = rows(COUNT, columns, out, seed=0)
    to.fill_(POISON[out])
    before = guarded(to).clone()
    call(isa, op, {**given, "out": to, "out_stride": to.stride(0)}, 3)
    made = to.clone()
    to.fill_(POISON[out])
    assert torch.equal(guarded(to).nan_to_num(9), before.nan_to_num(9))
    return made


@pytest.mark.parametrize("isa", ["scalar", *FAST])
@pytest.mark.parametrize("out", [F32, BF16, U8])
@pytest.mark.parametrize("columns", [1, 3, 17, 96, 130])
def test_norm_of_moved_rows(isa: str, out: torch.dtype, columns: int) -> None:
    dtype = BF16 if out is BF16 else F32
    x = rows(GIVEN, columns, dtype, seed=columns)
    x[8] = float("nan")
    given: dict[str, Any] = {
        "in": x,
        "in_stride": x.stride(0),
        "in_type": dtype,
        "eps": 1e-5,
        "rows": COUNT,
        "cols": columns,
        "gamma": torch.linspace(-1, 2, columns),
        "beta": torch.linspace(3, 1, columns),
        "out_type": out,
        "out_scale": 0.03,
        "out_zero": 9,
    }
    got = written(isa, "norm", {**given, "in_rows": TABLE}, columns, out)
    first = moved(x, 0)
    plain = {**given, "in": first, "in_stride": columns}
    wanted = written(isa, "norm", plain, columns, out)
    # A row that is not there is zero, not the norm of zeros, which is beta.
    wanted[TABLE < 0] = 9 if out is U8 else 0
    assert torch.equal(got, wanted)
    close(got, written("scalar", "norm", {**given, "in_rows": TABLE}, columns, out))


@pytest.mark.parametrize("isa", ["scalar", *FAST])
@pytest.mark.parametrize("op", ["none", "add", "mul"])
@pytest.mark.parametrize(
    ("dtype", "out"), [(F32, F32), (BF16, BF16), (BF16, U8), (U8, U8), (U8, F32)]
)
def test_elementwise_over_moved_rows(
    isa: str, op: str, dtype: torch.dtype, out: torch.dtype
) -> None:
    for columns in (1, 3, 17, 96, 1030):
        a = rows(GIVEN, columns, dtype, seed=columns)
        if dtype.is_floating_point:
            a[8] = float("nan")
        b = rows(COUNT, columns, F32, seed=1)
        given: dict[str, Any] = {
            "a_type": dtype,
            "a_scale": 0.05,
            "a_zero": 8,
            "op": op,
            "b": b,
            "b_stride": b.stride(0),
            "b_type": F32,
            "rows": COUNT,
            "cols": columns,
            "out_type": out,
            "out_scale": 0.05,
            "out_zero": 8,
        }
        here = {**given, "a": a, "a_stride": a.stride(0), "a_rows": TABLE}
        got = written(isa, "eltwise", here, columns, out)
        first = moved(a, 8 if dtype is U8 else 0)
        plain = {**given, "a": first, "a_stride": columns}
        assert torch.equal(got, written(isa, "eltwise", plain, columns, out))
        if op == "none" and dtype == out:
            assert torch.equal(got, first)
        close(got, written("scalar", "eltwise", here, columns, out))
