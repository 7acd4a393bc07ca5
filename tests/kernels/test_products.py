"""Matrix products and convolutions: every instruction set against the scalar reference and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import LEVELS, POISON, call, guarded, native, pack, rows

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
FAST = [level for level in LEVELS if level != "scalar"]
F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8
# Sums differ by order only; bf16 products are exact in float32, outputs are rounded once.
TOLERANCE = {F32: 2e-5, BF16: 1e-2, U8: 1.01, S8: 1.01}


def weight_type(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else S8


def make_weights(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator) / (shape[1] * shape[2] * shape[3]) ** 0.5
    return torch.randint(-128, 128, shape, generator=generator, dtype=S8)


def epilogue(
    n: int, outputs: int, dtype: torch.dtype, out: torch.dtype, kind: int
) -> dict[str, Any]:
    """A different mix of scale, bias, activation and residual for each `kind`."""
    generator = torch.Generator().manual_seed(n + kind)
    acts = ["none", "relu", "silu", "gelu", "hardswish", "relu6", "gelu_tanh", "sigmoid", "tanh"]
    ep: dict[str, Any] = {"act": acts[kind % len(acts)], "out_type": out}
    if kind % 3 != 0 or not dtype.is_floating_point:
        size = 1e-4 if not dtype.is_floating_point else 1.0
        ep["scale"] = (torch.rand(n, generator=generator) + 0.5) * size
    if kind % 2 == 0:
        ep["bias"] = torch.randn(n, generator=generator)
    if kind % 4 >= 2:
        residual = [F32, BF16, U8, S8][kind // 4 % 4]
        ep["residual"] = rows(outputs, n, residual, seed=kind)
        ep["residual_stride"] = ep["residual"].stride(0)
        ep["residual_type"] = residual
        ep["residual_scale"], ep["residual_zero"] = 0.01, 7
        ep["residual_after"] = kind % 8 >= 4
    if not out.is_floating_point:
        ep["out_scale"], ep["out_zero"] = 0.02, 11
    return ep


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    limit = TOLERANCE[wanted.dtype]
    g, w = got.double(), wanted.double()
    assert torch.isfinite(g).all()
    error = (g - w).abs() / (1 if not wanted.is_floating_point() else 1 + w.abs())
    assert error.max() <= limit, f"error {error.max():.3g} at {error.argmax()}"
    if not wanted.is_floating_point():  # one unit off only where rounding was a near tie
        assert (g != w).double().mean() < 0.02 or (g != w).sum() <= 2


def compare(
    isa: str,
    op: str,
    given: dict[str, Any],
    weights: torch.Tensor,
    shape: dict[str, Any],
    outputs: int,
    columns: int,
    out: torch.dtype,
    parts: int = 3,
) -> torch.Tensor:
    name = "c" if op == "gemm" else "out"
    results = []
    for level in ("scalar", isa):
        to = rows(outputs, columns, out, seed=0)
        to.fill_(POISON[out])
        packed = pack(level, op, weights, shape)
        stride = {"ldc" if op == "gemm" else "out_stride": to.stride(0)}
        call(level, op, {**given, "w": packed, name: to, **stride}, parts)
        gaps = guarded(to).clone()
        results.append(to.clone())
        to.fill_(POISON[out])
        poison = torch.full_like(gaps, POISON[out])
        inside = guarded(to)
        marks = torch.zeros_like(gaps, dtype=torch.bool)
        view = marks[to.storage_offset() :].as_strided(to.shape, to.stride(), to.storage_offset())
        view.fill_(True)
        assert torch.equal(gaps[~marks].nan_to_num(9), poison[~marks].nan_to_num(9)), (
            "wrote between rows"
        )
        del inside
    close(results[1], results[0])
    return results[0]


def gemm_case(
    isa: str, m: int, n: int, k: int, dtype: torch.dtype, out: torch.dtype, kind: int
) -> None:
    a = rows(m, k, dtype, seed=m + n + k)
    w = make_weights((n, k, 1, 1), dtype, seed=k)
    ep = epilogue(n, m, dtype, out, kind)
    shape = {"type": weight_type(dtype), "out": n, "in": k}
    given = {"a": a, "lda": a.stride(0), "a_type": dtype, "m": m, "n": n, "k": k, **ep}
    if not dtype.is_floating_point:
        given["a_zero"] = 3
    wanted = compare(isa, "gemm", given, w, shape, m, n, out)
    if kind == 0 and out is F32:
        x = a.double() - (0 if dtype.is_floating_point else 3)
        weights = (w.to(dtype) if dtype.is_floating_point else w).double().view(n, k)
        exact = x @ weights.T * ep.get("scale", torch.ones(n)).double() + ep["bias"].double()
        torch.testing.assert_close(wanted.double(), exact, rtol=1e-4, atol=1e-4)


ODD = [1, 3, 17, 31, 33, 64]


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8])
@pytest.mark.parametrize("isa", FAST)
def test_gemm_at_odd_sizes(isa: str, dtype: torch.dtype) -> None:
    for i, (m, n, k) in enumerate(
        (m, n, k) for m in ODD for n in ODD for k in (1, 3, 17, 33, 64, 160)
    ):
        gemm_case(isa, m, n, k, dtype, F32, kind=i % 7)


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8])
@pytest.mark.parametrize("isa", FAST)
def test_gemm_epilogues(isa: str, dtype: torch.dtype) -> None:
    for kind in range(18):
        for out in (F32, BF16, U8, S8):
            gemm_case(isa, 19, 37, 64, dtype, out, kind)


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8])
@pytest.mark.parametrize("isa", FAST)
def test_gemm_of_many_chunks(isa: str, dtype: torch.dtype) -> None:
    gemm_case(isa, 1500, 70, 512, dtype, BF16, kind=1)
    gemm_case(isa, 333, 40, 900, dtype, F32, kind=0)


@pytest.mark.parametrize("dtype", [BF16, U8])
@pytest.mark.parametrize("isa", FAST)
def test_gemm_however_tiles_are_loaded(isa: str, dtype: torch.dtype) -> None:
    """Few rows, panels that L1 holds and panels that it does not, rows cut for two threads."""
    for m, n, k in ((5, 40, 1500), (49, 33, 1500), (37, 40, 700), (33, 33, 1480), (131, 40, 96)):
        gemm_case(isa, m, n, k, dtype, F32, kind=0)


@pytest.mark.parametrize("dtype", [BF16, U8, S8])
@pytest.mark.parametrize("isa", FAST)
def test_gemm_of_rows_that_two_threads_do_not_share_evenly(isa: str, dtype: torch.dtype) -> None:
    """Each has whole blocks of rows; those beyond go by columns, an even and an odd number of them."""
    for tail in (1, 5, 16, 17, 31, 32, 33, 48, 49, 63):
        for n, kind in ((70, 0), (128, 6), (33, 2)):
            gemm_case(isa, 64 + tail, n, 128, dtype, BF16 if kind else F32, kind)
    gemm_case(isa, 197, 96, 192, dtype, F32, kind=2)


# n, h, w, c, out, kh, kw, stride, pad, dilation, groups
CONVS = [
    (1, 5, 5, 3, 8, 3, 3, 1, 1, 1, 1),
    (1, 9, 7, 3, 33, 3, 3, 2, 1, 1, 1),
    (2, 15, 17, 1, 17, 7, 7, 2, 3, 1, 1),
    (1, 16, 16, 4, 31, 4, 4, 4, 0, 1, 1),
    (1, 32, 48, 3, 40, 16, 16, 16, 0, 1, 1),
    (1, 14, 14, 32, 64, 3, 3, 1, 1, 1, 1),
    (2, 14, 13, 33, 31, 3, 3, 2, 1, 1, 1),
    (1, 7, 7, 160, 96, 3, 3, 1, 1, 1, 1),
    (1, 8, 8, 64, 70, 1, 1, 2, 0, 1, 1),
    (3, 6, 5, 64, 33, 1, 1, 1, 0, 1, 1),
    (1, 9, 9, 17, 16, 1, 1, 1, 1, 1, 1),
    (1, 12, 11, 40, 24, 3, 3, 1, 2, 2, 1),
    (1, 12, 11, 3, 24, 3, 3, 1, 3, 3, 1),
    (1, 13, 12, 32, 24, 3, 3, 2, 2, 2, 1),
    (1, 10, 9, 32, 64, 3, 3, 1, 1, 1, 4),
    (1, 10, 9, 96, 96, 3, 3, 2, 1, 1, 12),
    (1, 6, 6, 128, 128, 1, 1, 1, 0, 1, 2),
    (1, 30, 31, 64, 35, 1, 7, 1, 0, 1, 1),
    (1, 31, 30, 48, 35, 7, 1, 1, 0, 1, 1),
    (1, 57, 56, 64, 64, 3, 3, 1, 1, 1, 1),
    (1, 1, 1, 64, 5, 3, 3, 1, 1, 1, 1),
    (1, 7, 6, 256, 20, 3, 3, 1, 1, 1, 1),
    (1, 7, 6, 512, 20, 3, 3, 2, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8])
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", range(len(CONVS)))
def test_convolution(isa: str, dtype: torch.dtype, case: int) -> None:
    conv_case(isa, case, dtype, dtype)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", [0, 1, 3, 5, 6, 9])
def test_float_input_with_bfloat16_weights(isa: str, case: int) -> None:
    conv_case(isa, case, F32, BF16)


def conv_case(isa: str, case: int, dtype: torch.dtype, weights_as: torch.dtype) -> None:
    n, h, width, c, out_c, kh, kw, stride, pad, dilation, groups = CONVS[case]
    out_h = (h + 2 * pad - (kh - 1) * dilation - 1) // stride + 1
    out_w = (width + 2 * pad - (kw - 1) * dilation - 1) // stride + 1
    x = rows(n * h * width, c, dtype, seed=case)
    w = make_weights((out_c, c // groups, kh, kw), weights_as, seed=case)
    out = [F32, BF16, U8, S8][case % 4]
    ep = epilogue(out_c, n * out_h * out_w, dtype, out, case)
    shape = {
        "type": weight_type(weights_as),
        "out": out_c,
        "in": c,
        "kh": kh,
        "kw": kw,
        "groups": groups,
    }
    given = {
        "in": x,
        "in_stride": x.stride(0),
        "in_type": dtype,
        "weight_type": weight_type(weights_as),
        "n": n,
        "h": h,
        "width": width,
        "c": c,
        "out_h": out_h,
        "out_w": out_w,
        "out_c": out_c,
        "kh": kh,
        "kw": kw,
        "stride_h": stride,
        "stride_w": stride,
        "pad_top": pad,
        "pad_left": pad,
        "dilation_h": dilation,
        "dilation_w": dilation,
        "groups": groups,
        **ep,
    }
    zero = 0 if dtype.is_floating_point else 5
    if zero:
        given["in_zero"] = zero
    wanted = compare(isa, "conv", given, w, shape, n * out_h * out_w, out_c, out)
    if case in (0, 4, 8, 16):  # kinds without activation or residual at a float output
        image = x.double().view(n, h, width, c).permute(0, 3, 1, 2) - zero
        kernel = (w.to(weights_as) if weights_as.is_floating_point else w).double()
        exact = torch.nn.functional.conv2d(image, kernel, None, stride, pad, dilation, groups)
        exact = (
            exact.permute(0, 2, 3, 1).reshape(-1, out_c)
            * ep.get("scale", torch.ones(out_c)).double()
        )
        exact += ep["bias"].double() if "bias" in ep else 0
        if ep["act"] == "none" and "residual" not in ep:
            torch.testing.assert_close(wanted.double(), exact, rtol=1e-2, atol=1e-2)
