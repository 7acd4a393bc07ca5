"""Two products with what lies between them made in slices: the bits of two kernels, at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import LEVELS, POISON, call, guarded, native, pack, rows
from test_products import FAST, close, epilogue, make_weights, weight_type

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8
DTYPES = [F32, BF16, U8, S8]
MLPS = [  # rows, inputs, between, outputs, act
    (1, 3, 5, 2, "gelu"),
    (17, 33, 31, 40, "relu"),
    (33, 64, 128, 64, "gelu_tanh"),
    (49, 40, 1601, 33, "gelu"),  # slices, the last of other than whole tiles
    (131, 96, 384, 96, "silu"),
    (70, 130, 777, 17, "none"),
    (16, 192, 1552, 65, "gelu"),  # rows of whole tiles read in place
    (301, 64, 1300, 600, "gelu"),  # more rows than a pass holds
]


class Mlp:
    """One case: its tensors and fields, run as one kernel or as two."""

    def __init__(self, case: int, dtype: torch.dtype, between: torch.dtype) -> None:
        m, k, n, self.out_n, act = MLPS[case]
        self.m, self.n, self.between = m, n, between
        self.out = DTYPES[(case + DTYPES.index(dtype)) % 4]
        self.weights = [
            make_weights((n, k, 1, 1), dtype, seed=case),
            make_weights((self.out_n, n, 1, 1), dtype, seed=case + 1),
        ]
        kind = weight_type(dtype)
        self.shapes: list[dict[str, Any]] = [
            {"type": kind, "out": n, "in": k},
            {"type": kind, "out": self.out_n, "in": n},
        ]
        x = rows(m, k, dtype, seed=case)
        self.first: dict[str, Any] = {
            "a": x,
            "lda": x.stride(0),
            "a_type": dtype,
            "m": m,
            "n": n,
            "k": k,
            "act": act,
            "out_type": between,
            "bias": torch.randn(n, generator=torch.Generator().manual_seed(case)),
        }
        self.second = epilogue(self.out_n, m, dtype, self.out, case)
        self.zero = 0
        if not dtype.is_floating_point:
            self.zero = 9
            self.first |= {"a_zero": 5, "scale": torch.full((n,), 3e-4)}
            self.first |= {"out_scale": 0.02, "out_zero": self.zero}

    def result(self) -> torch.Tensor:
        to = rows(self.m, self.out_n, self.out, seed=0)
        to.fill_(POISON[self.out])
        return to

    def packed(self, level: str) -> list[torch.Tensor]:
        pairs = zip(self.weights, self.shapes, strict=True)
        return [pack(level, "gemm", w, shape) for w, shape in pairs]

    def together(self, level: str, parts: int = 3, **how: int) -> torch.Tensor:
        first, second = self.packed(level)
        given = {f"expand_{k}": v for k, v in {**self.first, "w": first}.items()}
        to = self.result()
        whole = {"w": second, "c": to, "ldc": to.stride(0), "n": self.out_n, **self.second}
        call(level, "mlp", given | whole, parts, **how)
        return to

    def apart(self, level: str) -> torch.Tensor:
        first, second = self.packed(level)
        inner = rows(self.m, self.n, self.between, seed=0)
        inner.fill_(POISON[self.between])
        call(level, "gemm", {**self.first, "w": first, "c": inner, "ldc": inner.stride(0)}, 3)
        to = self.result()
        given = {"a": inner, "lda": inner.stride(0), "a_type": self.between, "a_zero": self.zero}
        given |= {"w": second, "c": to, "ldc": to.stride(0)}
        given |= {"m": self.m, "n": self.out_n, "k": self.n, **self.second}
        call(level, "gemm", given, 3)
        return to


def types() -> list[tuple[torch.dtype, torch.dtype]]:
    """Activations, and what lies between."""
    return [(F32, F32), (BF16, BF16), (U8, U8), (U8, S8), (S8, U8), (S8, S8)]


@pytest.mark.parametrize(("dtype", "between"), types())
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("case", range(len(MLPS)))
def test_the_bits_are_those_of_two_products(
    isa: str, dtype: torch.dtype, between: torch.dtype, case: int
) -> None:
    mlp = Mlp(case, dtype, between)
    if isa == "scalar" and mlp.m * mlp.n * mlp.out_n > 4_000_000:
        pytest.skip("plain loops")
    together = mlp.together(isa)
    assert torch.equal(together, mlp.apart(isa))
    gaps = guarded(together).clone()
    gaps[together.storage_offset() :].as_strided(together.shape, together.stride()).fill_(
        POISON[mlp.out]
    )
    poison = torch.full_like(gaps, POISON[mlp.out])
    assert torch.equal(gaps.nan_to_num(9), poison.nan_to_num(9)), "wrote between rows"


@pytest.mark.parametrize(("dtype", "between"), types())
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", [1, 2, 3])
def test_the_reference_says_the_same(
    isa: str, dtype: torch.dtype, between: torch.dtype, case: int
) -> None:
    mlp = Mlp(case, dtype, between)
    got, wanted = mlp.together(isa), mlp.together("scalar")
    if mlp.out.is_floating_point and between is not F32:
        # Where the value between lies near a tie, the sums' order decides how it is rounded.
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    elif between is not F32:
        assert (got.int() - wanted.int()).abs().max() <= 2
    else:
        close(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", FAST)
def test_any_split_of_the_rows_gives_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    mlp = Mlp(7, dtype, dtype)
    whole = mlp.together(isa, parts=1)
    for parts in (2, 3, 7, 300):
        assert torch.equal(whole, mlp.together(isa, parts))
    assert torch.equal(whole, mlp.together(isa, threads=2))


def test_products_of_two_types_are_refused() -> None:
    mlp = Mlp(1, BF16, BF16)
    mlp.first["out_type"] = F32
    with pytest.raises(ValueError, match="one type"):
        mlp.together(FAST[-1] if FAST else "scalar")
