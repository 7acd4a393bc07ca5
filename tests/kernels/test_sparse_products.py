"""Sparse products: every level and form against the scalar reference and the dense kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import LEVELS, POISON, TYPES, call, guarded, native, pack, rows

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
FAST = [level for level in LEVELS if level != "scalar"]
FORMS = ("single", "quads", "lanes", "tiles", "masked")
F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8


def sparse_weights(
    n: int, k: int, dtype: torch.dtype, share: float, block: tuple[int, int], seed: int
) -> torch.Tensor:
    """(n, k) weights of which `share` of the blocks are zero; bf16 ones are given as float32."""
    g = torch.Generator().manual_seed(seed)
    out, into = -(-n // block[0]), -(-k // block[1])
    keep = (torch.rand(out, into, generator=g) >= share).repeat_interleave(block[0], 0)
    keep = keep.repeat_interleave(block[1], 1)[:n, :k]
    if dtype.is_floating_point:
        return torch.where(keep, torch.randn(n, k, generator=g) / k**0.5, 0.0)
    return torch.where(keep, torch.randint(-128, 128, (n, k), generator=g), 0).to(S8)


def run(
    isa: str,
    form: str | None,
    a: torch.Tensor,
    w: torch.Tensor,
    out: torch.dtype,
    parts: int = 3,
    **ep: Any,
) -> torch.Tensor:
    """The product through one form (None: the dense kernel); what lies between rows is checked."""
    (m, k), n = a.shape, w.shape[0]
    shape = {"type": a.dtype if a.dtype.is_floating_point else S8, "out": n, "in": k}
    packed = pack(isa, "gemm" if form is None else f"sparse_{form}", w, shape)
    to = rows(m, n, out, seed=0)
    to.fill_(POISON[out])
    given: dict[str, Any] = {"a": a, "lda": a.stride(0), "a_type": a.dtype, "w": packed}
    given |= {"c": to, "ldc": to.stride(0), "m": m, "n": n, "k": k, "out_type": out, **ep}
    if not a.dtype.is_floating_point:
        given["a_zero"] = 3
    call(isa, "gemm" if form is None else "sparse", given, parts)
    result = to.clone()
    to.fill_(POISON[out])
    whole = guarded(to)
    assert torch.equal(whole.nan_to_num(9), torch.full_like(whole, POISON[out]).nan_to_num(9))
    return result


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8], ids=lambda d: TYPES[d])
@pytest.mark.parametrize("isa", LEVELS)
def test_equals_the_dense_product_of_the_same_weights(isa: str, dtype: torch.dtype) -> None:
    cases = [(1, 1, 1), (3, 17, 7), (17, 33, 63), (20, 48, 64), (49, 16, 96), (130, 40, 200)]
    for i, (m, n, k) in enumerate(cases):
        a = rows(m, k, dtype, seed=i)
        for share, block in ((0.0, (1, 1)), (0.6, (1, 1)), (0.7, (4, 1)), (0.8, (16, 32))):
            w = sparse_weights(n, k, dtype, share, block, seed=i)
            x = a.double() - (0 if dtype.is_floating_point else 3)
            held = w.to(BF16).double() if dtype is BF16 else w.double()
            wanted = x @ held.T
            for form in FORMS:
                got = run(isa, form, a, w, F32).double()
                if dtype.is_floating_point:
                    assert (got - wanted).abs().max() <= 2e-5 * (1 + wanted.abs().max()), form
                else:  # sums below 2 ** 24 are exact as float32
                    assert torch.equal(got, wanted), form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("isa", FAST)
def test_epilogues_are_those_of_the_dense_kernel(isa: str, form: str) -> None:
    m, n, k = 45, 50, 128
    g = torch.Generator().manual_seed(1)
    for i, (dtype, out) in enumerate(((F32, F32), (BF16, BF16), (U8, U8), (U8, F32), (BF16, F32))):
        a = rows(m, k, dtype, seed=i)
        w = sparse_weights(n, k, dtype, 0.8, (16, 4), seed=i)
        residual = rows(m, n, [F32, BF16, U8][i % 3], seed=9)
        ep: dict[str, Any] = {
            "act": ["relu", "gelu", "silu", "none", "hardswish"][i],
            "bias": torch.randn(n, generator=g),
            "scale": torch.rand(n, generator=g) * (1 if dtype.is_floating_point else 1e-3),
            "residual": residual,
            "residual_stride": residual.stride(0),
            "residual_type": residual.dtype,
            "residual_scale": 0.01,
            "residual_after": i % 2 == 0,
        }
        if out is U8:
            ep |= {"out_scale": 0.02, "out_zero": 11}
        for more in (ep, {k: v for k, v in ep.items() if "residual" not in k}):
            dense = run(isa, None, a, w, out, **more).double()
            sparse = run(isa, form, a, w, out, **more).double()
            limit = 1.01 if out is U8 else 1e-2 if out is BF16 else 2e-5
            assert (dense - sparse).abs().max() <= limit * (
                1 if out is U8 else 1 + dense.abs().max()
            )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("isa", FAST)
def test_any_split_of_the_work_gives_the_same_bits(isa: str, form: str) -> None:
    a, w = rows(150, 96, F32, seed=1), sparse_weights(70, 96, F32, 0.7, (1, 1), seed=2)
    whole = run(isa, form, a, w, F32, parts=1)
    for parts in (2, 5, 64):
        assert torch.equal(whole, run(isa, form, a, w, F32, parts=parts))


def test_zero_weights_are_not_held() -> None:
    for isa in LEVELS:
        for form in FORMS:
            sizes = [
                pack(isa, f"sparse_{form}", w, {"type": F32, "out": 64, "in": 256}).numel()
                for w in (
                    sparse_weights(64, 256, F32, share, (16, 16), seed=3)
                    for share in (0.0, 0.5, 0.9, 1.0)
                )
            ]
            assert sizes == sorted(sizes, reverse=True), (isa, form)
            assert sizes[2] < 0.3 * sizes[0], (isa, form)


@pytest.mark.parametrize("isa", FAST)
def test_all_weights_zero_leaves_the_bias(isa: str) -> None:
    bias = torch.arange(20.0)
    for form in FORMS:
        got = run(isa, form, rows(5, 64, F32, seed=1), torch.zeros(20, 64), F32, bias=bias)
        assert torch.equal(got, bias.expand(5, 20))
