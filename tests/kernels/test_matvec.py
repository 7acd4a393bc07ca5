"""Weight-only int8 and int4 products of every instruction set against torch on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import LEVELS, call, fields, native, rows

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
CASES = [  # m, n, k, group
    (1, 1, 1, 1),
    (1, 17, 96, 32),
    (3, 33, 100, 32),
    (16, 64, 256, 64),
    (5, 31, 63, 63),
    (1, 130, 1024, 1024),
]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_matvec(isa: str, bits: int, case: int) -> None:
    m, n, k, group = CASES[case]
    generator = torch.Generator().manual_seed(case)
    low, high = (-127, 128) if bits == 8 else (-8, 8)
    q = torch.randint(low, high, (n, k), generator=generator, dtype=torch.int8)
    scales = torch.rand(n, -(-k // group), generator=generator) / high
    zeros = torch.randint(low, high, scales.shape, generator=generator, dtype=torch.int8)
    if case == 0:
        zeros.zero_()
    x = rows(m, k, [torch.float32, torch.bfloat16][case % 2], seed=case)
    bias = torch.randn(n, generator=generator)
    y = rows(m, n, torch.float32, seed=0)
    y.fill_(float("nan"))
    given: dict[str, Any] = {
        "x": x,
        "ldx": x.stride(0),
        "x_type": x.dtype,
        "bits": bits,
        "group": group,
        "m": m,
        "n": n,
        "k": k,
        "y": y,
        "ldy": y.stride(0),
        "bias": bias,
        "act": "relu",
    }
    size = native.kernel_packed_size(isa, "matvec", fields(given))
    whole = torch.zeros(size + 64, dtype=torch.uint8)
    start = -whole.data_ptr() % 64
    packed = whole[start : start + size]
    where = (q.data_ptr(), scales.data_ptr(), packed.data_ptr())
    # None given are all zero.
    native.kernel_pack(isa, "matvec", fields(given), *where, zeros=zeros.data_ptr() if case else 0)
    call(isa, "matvec", {**given, "w": packed}, 3)
    around = q.double() - zeros.double().repeat_interleave(group, 1)[:, :k]
    weights = around * scales.double().repeat_interleave(group, 1)[:, :k]
    exact = (x.double() @ weights.T + bias.double()).relu()
    # Where 4-bit weights meet whole numbers, these are off by half of a step of 24 (bf16: 16) bits.
    steps = 127 * (256 if x.dtype is torch.bfloat16 else 65536)
    # Codes are raised by 8 there, and what that adds comes off again.
    raised = (16 * scales.double()).repeat_interleave(group, 1)[:, :k].sum(1)
    room = float(x.abs().max()) / steps / 2 * raised if bits == 4 else 0
    assert ((y.double() - exact).abs() <= 1e-4 + 1e-4 * exact.abs() + room).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("isa", [level for level in LEVELS if level != "scalar"])
def test_a_number_that_is_none_is_seen(isa: str, poison: float) -> None:
    n, k = 20, 64
    q, scales = torch.ones(n, k, dtype=torch.int8), torch.ones(n, 2)
    x, y = torch.randn(1, k), torch.zeros(1, n)
    x[0, 40] = poison
    given: dict[str, Any] = {"x": x, "ldx": k, "bits": 4, "group": 32, "m": 1, "n": n, "k": k}
    given |= {"y": y, "ldy": n}
    size = native.kernel_packed_size(isa, "matvec", fields(given))
    whole = torch.zeros(size + 64, dtype=torch.uint8)
    packed = whole[-whole.data_ptr() % 64 :][:size]
    native.kernel_pack(
        isa, "matvec", fields(given), q.data_ptr(), scales.data_ptr(), packed.data_ptr()
    )
    call(isa, "matvec", {**given, "w": packed})
    assert not y.isfinite().any()
