"""The custom operators: exact invariants, odd sizes, strides, extremes, and their fake versions."""

import math

import pytest
import torch
from torch import Tensor

from paredown.runtime import ops

SIZES = [1, 3, 17, 63]


def every_op() -> dict[str, tuple]:
    """One call of each operator; a new one fails `test_all_ops_listed` until it is here."""
    x = torch.randn(5, 6)
    scale, zero = torch.tensor([0.05]), torch.tensor([7], dtype=torch.int32)
    q = torch.randint(0, 16, (5, 6), dtype=torch.uint8)
    groups = (torch.rand(5, 2) + 0.1, torch.randint(0, 16, (5, 2), dtype=torch.uint8))
    return {
        "quantize": (x, scale, zero, 0, 255, -1),
        "dequantize": (q, scale, zero, -1, torch.float32),
        "dequantize_groups": (ops.pack_int4(q), *groups, 4, 6, torch.float32),
        "embedding_groups": (torch.tensor([[4, 0]]), q, *groups, 8, 6, torch.bfloat16),
        "dynamic_quantize": (x,),
        "dynamic_quantize_rows": (x,),
    }


def test_all_ops_listed():
    # Ours only: other rooms register operators in the same namespace from their own modules.
    ours = {n for n in vars(ops) if isinstance(getattr(ops, n), torch.library.CustomOpDef)}
    assert ours == set(every_op())


@pytest.mark.parametrize("name", list(every_op()))
def test_fake_agrees_with_real(name):
    op = getattr(torch.ops.paredown, name).default
    args = every_op()[name]
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["quantize", "dynamic_quantize"])
def test_fake_strides_of_non_contiguous_input(name):
    args = list(every_op()[name])
    args[0] = torch.randn(2, 3, 6, 5).to(memory_format=torch.channels_last)[:, :, 1:]
    op = getattr(torch.ops.paredown, name).default
    torch.library.opcheck(op, tuple(args), test_utils=("test_faketensor",))


def one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([value], dtype=dtype)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("zero", [0, 5, 255])
def test_zero_is_exact(n, zero):
    x = torch.zeros(n, 3)
    scale, z = one(0.0371), one(zero, torch.int32)
    q = ops.quantize(x, scale, z, 0, 255, -1)
    assert (q == zero).all()
    assert (ops.dequantize(q, scale, z, -1, torch.float32) == 0).all()


@pytest.mark.parametrize("n", SIZES)
def test_round_trip_of_integers(n):
    q = torch.randint(-127, 128, (n, 7), dtype=torch.int8)
    scale = torch.rand(n) + 0.01
    x = ops.dequantize(q, scale, one(0, torch.int32), 0, torch.float32)
    assert torch.equal(ops.quantize(x, scale, one(0, torch.int32), -127, 127, 0), q)


@pytest.mark.parametrize("n", SIZES)
def test_error_is_half_a_step_inside_and_clamped_outside(n):
    scale, zero = one(0.02), one(100, torch.int32)
    low, high = -100 * 0.02, 155 * 0.02
    x = torch.randn(n, 40) * 3
    back = ops.dequantize(ops.quantize(x, scale, zero, 0, 255, -1), scale, zero, -1, torch.float32)
    inside = (x >= low) & (x <= high)
    assert inside.any()
    assert ((back - x).abs()[inside] <= 0.01 * (1 + 1e-5)).all()
    assert torch.allclose(back[x > high], torch.tensor(high))
    assert torch.allclose(back[x < low], torch.tensor(low))


def test_non_contiguous_equals_contiguous():
    x = torch.randn(17, 9, 5).permute(2, 0, 1)[:, ::2]
    scale, zero = torch.rand(5) + 0.01, torch.zeros(5, dtype=torch.int32)
    args = (scale, zero, -127, 127, 0)
    assert torch.equal(ops.quantize(x, *args), ops.quantize(x.contiguous(), *args))


def test_extremes_saturate_and_nan_becomes_the_zero_point():
    x = torch.tensor([math.inf, -math.inf, 3.4e38, -3.4e38, math.nan])
    q = ops.quantize(x, one(1e-3), one(9, torch.int32), 0, 255, -1)
    assert q.tolist() == [255, 0, 255, 0, 9]


@pytest.mark.parametrize("columns", SIZES)
def test_pack_int4_round_trip(columns):
    q = torch.randint(0, 16, (3, columns), dtype=torch.uint8)
    packed = ops.pack_int4(q)
    assert packed.shape == (3, (columns + 1) // 2)
    one_group = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.uint8)
    back = ops.dequantize_groups(packed, *one_group, 4, columns, torch.float32)
    assert torch.equal(back, q.float())


def test_grouped_rows_of_an_embedding_equal_the_dequantized_table():
    q = torch.randint(0, 16, (11, 8), dtype=torch.uint8)
    groups = torch.rand(11, 2), torch.randint(0, 16, (11, 2), dtype=torch.uint8)
    index = torch.tensor([[3, 10, 3], [0, 0, 7]])
    table = ops.dequantize_groups(ops.pack_int4(q), *groups, 4, 8, torch.float32)
    rows = ops.embedding_groups(index, ops.pack_int4(q), *groups, 4, 8, torch.float32)
    assert torch.equal(rows, table[index])


@pytest.mark.parametrize("n", SIZES)
def test_dynamic_range_holds_zero_and_its_own_extremes(n):
    x = torch.randn(n, 5) + 4
    q, scale, zero = ops.dynamic_quantize(x)
    back = ops.dequantize(q, scale, zero, -1, torch.float32)
    assert zero.item() == 0
    assert ((back - x).abs() <= scale.item() / 2 * (1 + 1e-4)).all()
    q, scale, zero = ops.dynamic_quantize(torch.zeros(n, 2))
    assert (ops.dequantize(q, scale, zero, -1, torch.float32) == 0).all()


def test_dynamic_nan_spreads():
    q, scale, zero = ops.dynamic_quantize(torch.tensor([1.0, math.nan, -2.0]))
    assert ops.dequantize(q, scale, zero, -1, torch.float32).isnan().all()
