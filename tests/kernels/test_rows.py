"""Depthwise convolution, norms, softmax, pooling, elementwise, resize and layouts.

Every instruction set against the scalar reference, and the scalar reference against torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from kernel_cases import LEVELS, POISON, call, guarded, native, pack, rows
from test_products import FAST, close, compare, epilogue, make_weights, weight_type

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8
DTYPES = [F32, BF16, U8, S8]
WIDTHS = [1, 3, 17, 31, 33, 64, 130]


def both(
    isa: str, op: str, given: dict[str, Any], count: int, columns: int, out: torch.dtype
) -> torch.Tensor:
    """The scalar result, after the one of `isa` was found equal to it."""
    results = []
    for level in ("scalar", isa):
        to = rows(count, columns, out, seed=0)
        to.fill_(POISON[out])
        before = guarded(to).clone()
        stride = {} if op == "transpose" else {"out_stride": to.stride(0)}
        call(level, op, {**given, "out": to, **stride}, 3)
        results.append(to.clone())
        to.fill_(POISON[out])
        assert torch.equal(guarded(to).nan_to_num(9), before.nan_to_num(9)), "wrote between rows"
    close(results[1], results[0])
    return results[0]


DEPTHWISE = [  # n, h, w, c, kh, kw, stride, pad, dilation
    (1, 9, 11, 17, 3, 3, 1, 1, 1),
    (2, 14, 14, 144, 3, 3, 2, 1, 1),
    (1, 7, 7, 33, 5, 5, 1, 2, 1),
    (1, 13, 19, 40, 5, 5, 2, 2, 1),
    (1, 14, 14, 96, 7, 7, 1, 3, 1),
    (1, 12, 25, 31, 1, 11, 1, 5, 1),
    (1, 25, 12, 31, 11, 1, 1, 5, 1),
    (1, 15, 16, 64, 3, 3, 1, 2, 2),
    (1, 35, 33, 1, 3, 3, 1, 1, 1),
    (1, 10, 10, 24, 4, 4, 4, 0, 1),
    (1, 3, 3, 200, 7, 7, 1, 3, 1),
    (1, 5, 131, 35, 3, 3, 1, 1, 1),  # a row too wide for the ring
    (1, 17, 230, 8, 7, 7, 2, 3, 1),
    (2, 33, 5, 70, 5, 5, 1, 2, 1),  # bands with a halo between them
    (1, 40, 1, 33, 3, 3, 1, 1, 1),
    (1, 6, 29, 64, 1, 1, 1, 0, 1),
    (1, 29, 31, 32, 2, 5, 3, 1, 1),
    (1, 9, 44, 16, 3, 3, 1, 1, 4),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", range(len(DEPTHWISE)))
def test_depthwise(isa: str, dtype: torch.dtype, case: int) -> None:
    n, h, width, c, kh, kw, stride, pad, dilation = DEPTHWISE[case]
    pad_h, pad_w = min(pad, kh - 1), min(pad, kw - 1)
    out_h = (h + 2 * pad_h - (kh - 1) * dilation - 1) // stride + 1
    out_w = (width + 2 * pad_w - (kw - 1) * dilation - 1) // stride + 1
    x = rows(n * h * width, c, dtype, seed=case)
    w = make_weights((c, 1, kh, kw), dtype, seed=case)
    out = DTYPES[case % 4]
    ep = epilogue(c, n * out_h * out_w, dtype, out, case)
    shape = {"type": weight_type(dtype), "out": c, "in": c, "kh": kh, "kw": kw, "groups": c}
    given = {
        "in": x,
        "in_stride": x.stride(0),
        "in_type": dtype,
        "weight_type": weight_type(dtype),
        "n": n,
        "h": h,
        "width": width,
        "c": c,
        "out_h": out_h,
        "out_w": out_w,
        "out_c": c,
        "kh": kh,
        "kw": kw,
        "stride_h": stride,
        "stride_w": stride,
        "pad_top": pad_h,
        "pad_left": pad_w,
        "dilation_h": dilation,
        "dilation_w": dilation,
        "groups": c,
        **ep,
    }
    if not dtype.is_floating_point:
        given["in_zero"] = 5
    compare(isa, "depthwise", given, w, shape, n * out_h * out_w, c, out)


EXPANSIONS = [  # n, h, w, channels in, expanded, kernel, stride, act
    (1, 9, 11, 17, 33, 3, 1, "relu6"),
    (2, 14, 14, 24, 144, 3, 2, "relu"),
    (1, 15, 40, 32, 40, 5, 1, "silu"),
    (1, 33, 29, 64, 16, 3, 1, "none"),  # bands with a halo between them
    (1, 5, 131, 96, 35, 3, 2, "relu6"),  # a row too wide for the ring
    (1, 6, 1, 3, 1, 7, 1, "hardswish"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", range(len(EXPANSIONS)))
def test_expansion_into_depthwise(isa: str, dtype: torch.dtype, case: int) -> None:
    n, h, width, k, c, kernel, stride, act = EXPANSIONS[case]
    pad = kernel // 2
    out_h, out_w = (h + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
    out = DTYPES[case % 4]
    # Between the two lie floats of the input's kind, or unsigned bytes.
    middle = dtype if dtype.is_floating_point else U8
    x = rows(n * h * width, k, dtype, seed=case)
    first = make_weights((c, k, 1, 1), dtype, seed=case)
    second = make_weights((c, 1, kernel, kernel), dtype, seed=case + 1)
    given: dict[str, Any] = {
        "expand_a": x,
        "expand_lda": x.stride(0),
        "expand_a_type": dtype,
        "expand_m": n * h * width,
        "expand_n": c,
        "expand_k": k,
        "expand_act": act,
        "expand_out_type": middle,
        "expand_bias": torch.randn(c, generator=torch.Generator().manual_seed(case)),
        "in_type": middle,
        "weight_type": weight_type(dtype),
        "n": n,
        "h": h,
        "width": width,
        "c": c,
        "out_h": out_h,
        "out_w": out_w,
        "out_c": c,
        "kh": kernel,
        "kw": kernel,
        "stride_h": stride,
        "stride_w": stride,
        "pad_top": pad,
        "pad_left": pad,
        "groups": c,
        **epilogue(c, n * out_h * out_w, dtype, out, case),
    }
    if not dtype.is_floating_point:
        given |= {"expand_a_zero": 5, "expand_scale": torch.full((c,), 3e-4)}
        given |= {"expand_out_scale": 0.02, "expand_out_zero": 9, "in_zero": 9}
    shape = {"type": weight_type(dtype), "out": c, "in": k}
    depth = {"type": shape["type"], "out": c, "in": c, "kh": kernel, "kw": kernel, "groups": c}

    def run(level: str, apart: bool) -> torch.Tensor:
        to = rows(n * out_h * out_w, c, out, seed=0)
        to.fill_(POISON[out])
        packed = {
            "expand_w": pack(level, "gemm", first, shape),
            "w": pack(level, "depthwise", second, depth),
        }
        every = {**given, **packed, "out": to, "out_stride": to.stride(0)}
        if not apart:
            call(level, "expand_depthwise", every, 3)
            return to
        between = rows(n * h * width, c, middle, seed=0)
        gemm = {k.removeprefix("expand_"): v for k, v in every.items() if k.startswith("expand_")}
        call(level, "gemm", {**gemm, "c": between, "ldc": between.stride(0)}, 3)
        rest = {k: v for k, v in every.items() if not k.startswith("expand_")}
        call(level, "depthwise", {**rest, "in": between, "in_stride": between.stride(0)}, 3)
        return to

    together = run(isa, apart=False)
    assert torch.equal(together, run(isa, apart=True))
    wanted = run("scalar", apart=False)
    if out.is_floating_point and middle is not F32:
        # Where the value between lies near a tie, the sums' order decides how it is rounded.
        torch.testing.assert_close(together, wanted, rtol=1e-2, atol=1e-2)
    else:
        close(together, wanted)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("rms", [False, True])
def test_norm(isa: str, rms: bool) -> None:
    for i, columns in enumerate([*WIDTHS, 384, 769]):
        for dtype in (F32, BF16):
            out = DTYPES[i % 4]
            x, add = (rows(9, columns, dtype, seed=columns + j) for j in range(2))
            x += 3
            gamma, beta = torch.randn(columns), torch.randn(columns)
            given: dict[str, Any] = {
                "in": x,
                "in_stride": x.stride(0),
                "in_type": dtype,
                "rms": rms,
                "eps": 1e-5,
                "rows": 9,
                "cols": columns,
                "out_type": out,
            }
            if i % 2:
                given |= {"gamma": gamma, "beta": None if rms else beta}
            if i % 3 == 0:
                total = rows(9, columns, dtype, seed=0)
                given |= {
                    "add": add,
                    "add_stride": add.stride(0),
                    "sum": total,
                    "sum_stride": total.stride(0),
                }
            if not out.is_floating_point:
                given |= {"out_scale": 0.03, "out_zero": 9}
            wanted = both(isa, "norm", given, 9, columns, out)
            if dtype is F32 and out is F32 and i % 3 and columns > 1:
                norm = nnf.rms_norm if rms else nnf.layer_norm
                exact = norm(x, (columns,), gamma if i % 2 else None, eps=1e-5)
                exact = exact + beta if i % 2 and not rms else exact
                torch.testing.assert_close(wanted, exact, rtol=1e-4, atol=1e-4)
            if "sum" in given:
                torch.testing.assert_close(given["sum"], x + add, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("isa", FAST)
def test_softmax(isa: str) -> None:
    for i, columns in enumerate([*WIDTHS, 1000]):
        x = rows(5, columns, [F32, BF16][i % 2], seed=i)
        x *= 10
        given = {
            "in": x,
            "in_stride": x.stride(0),
            "in_type": x.dtype,
            "scale": 0.7,
            "rows": 5,
            "cols": columns,
            "out_type": F32,
        }
        wanted = both(isa, "softmax", given, 5, columns, F32)
        torch.testing.assert_close(wanted, (x.float() * 0.7).softmax(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize(
    "act",
    [
        "none",
        "relu",
        "relu6",
        "silu",
        "hardswish",
        "gelu",
        "gelu_tanh",
        "sigmoid",
        "hardsigmoid",
        "tanh",
    ],
)
def test_elementwise(isa: str, act: str) -> None:
    for i, columns in enumerate(WIDTHS):
        for j, op in enumerate(["none", "add", "mul", "sub"]):
            a = rows(8, columns, DTYPES[(i + j) % 4], seed=i, gap=5 * (i % 2))
            b = rows(8, columns, DTYPES[(i + j // 2) % 4], seed=i + 9, gap=5 * (i % 2))
            out = DTYPES[(i // 2 + j) % 4]
            kind = (i + j) % 4  # whole tensor, per channel, per image, scalar
            given: dict[str, Any] = {
                "a": a,
                "a_stride": a.stride(0),
                "a_type": a.dtype,
                "a_scale": 0.02,
                "a_zero": 100,
                "op": op,
                "b": b,
                "b_type": b.dtype,
                "b_scale": 0.03,
                "b_zero": 4,
                "act": act,
                "b_stride": b.stride(0) if kind in (0, 2) else 0,
                "b_rows": 3 if kind == 2 else 1,
                "b_col": 0 if kind == 3 else 1,
                "rows": 8,
                "cols": columns,
                "out_type": out,
                "out_scale": 0.05,
                "out_zero": 8,
            }
            both(isa, "eltwise", given, 8, columns, out)


def test_scalar_activations_are_those_of_torch() -> None:
    x = torch.linspace(-12, 12, 4001).view(1, -1)
    table = {
        "relu": nnf.relu,
        "relu6": nnf.relu6,
        "silu": nnf.silu,
        "hardswish": nnf.hardswish,
        "gelu": nnf.gelu,
        "gelu_tanh": lambda t: nnf.gelu(t, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "hardsigmoid": nnf.hardsigmoid,
        "tanh": torch.tanh,
    }
    for level in LEVELS:
        for name, function in table.items():
            out = torch.empty_like(x)
            given = {
                "a": x,
                "a_stride": 4001,
                "a_type": F32,
                "act": name,
                "rows": 1,
                "cols": 4001,
                "out": out,
                "out_stride": 4001,
                "out_type": F32,
            }
            call(level, "eltwise", given)
            torch.testing.assert_close(
                out, function(x), rtol=2e-6, atol=1.5e-6, msg=f"{name} on {level}"
            )


@pytest.mark.parametrize("isa", LEVELS)
def test_nan_is_carried_through_activations(isa: str) -> None:
    x, out = torch.full((1, 21), float("nan")), torch.zeros(1, 21)
    for act in ("relu", "relu6", "silu", "hardsigmoid", "sigmoid", "tanh"):
        given = {
            "a": x,
            "a_stride": 21,
            "a_type": F32,
            "act": act,
            "rows": 1,
            "cols": 21,
            "out": out,
            "out_stride": 21,
            "out_type": F32,
        }
        out.zero_()
        call(isa, "eltwise", given)
        assert out.isnan().all(), act


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling(isa: str, kind: str) -> None:
    for i, (h, width, c, k, stride, pad) in enumerate(
        [(7, 9, 17, 3, 2, 1), (8, 8, 64, 2, 2, 0), (5, 5, 33, 5, 1, 2), (6, 7, 130, 3, 1, 1)]
    ):
        for dtype in DTYPES:
            out = dtype if dtype.is_floating_point else [dtype, F32][i % 2]
            oh, ow = (h + 2 * pad - k) // stride + 1, (width + 2 * pad - k) // stride + 1
            x = rows(2 * h * width, c, dtype, seed=i)
            given = {
                "kind": kind,
                "count_padding": i % 2,
                "in_scale": 0.1,
                "in": x,
                "in_stride": x.stride(0),
                "in_type": dtype,
                "n": 2,
                "h": h,
                "width": width,
                "c": c,
                "out_h": oh,
                "out_w": ow,
                "kh": k,
                "kw": k,
                "stride_h": stride,
                "stride_w": stride,
                "pad_top": pad,
                "pad_left": pad,
                "out_type": out,
            }
            if not dtype.is_floating_point:
                given |= {"in_zero": 7, "out_scale": 0.137, "out_zero": 7}  # no ties
            wanted = both(isa, "pool", given, 2 * oh * ow, c, out)
            if dtype is F32:
                image = x.view(2, h, width, c).permute(0, 3, 1, 2)
                exact = (
                    nnf.max_pool2d(image, k, stride, pad)
                    if kind == "max"
                    else nnf.avg_pool2d(image, k, stride, pad, count_include_pad=bool(i % 2))
                )
                torch.testing.assert_close(wanted, exact.permute(0, 2, 3, 1).reshape(-1, c))


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_global_pool(isa: str, dtype: torch.dtype) -> None:
    for c in WIDTHS:
        x = rows(3 * 49, c, dtype, seed=c)
        given = {
            "in": x,
            "in_type": dtype,
            "in_scale": 0.1,
            "in_zero": 3 * (not dtype.is_floating_point),
            "n": 3,
            "pixels": 49,
            "c": c,
            "in_stride": x.stride(0),
            "out_type": F32,
        }
        wanted = both(isa, "global_pool", given, 3, c, F32)
        if dtype is F32:
            torch.testing.assert_close(wanted, x.reshape(3, 49, c).mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bilinear", "corners"), [(True, False), (True, True), (False, False)])
def test_resize(isa: str, dtype: torch.dtype, bilinear: bool, corners: bool) -> None:
    for h, width, oh, ow, c in [
        (5, 7, 10, 14, 17),
        (9, 8, 4, 5, 33),
        (1, 1, 3, 3, 64),
        (6, 6, 6, 6, 3),
    ]:
        x = rows(2 * h * width, c, dtype, seed=h)
        given = {
            "in": x,
            "in_stride": x.stride(0),
            "type": dtype,
            "n": 2,
            "h": h,
            "width": width,
            "c": c,
            "out_h": oh,
            "out_w": ow,
            "bilinear": bilinear,
            "align_corners": corners,
        }
        wanted = both(isa, "resize", given, 2 * oh * ow, c, dtype)
        if dtype is F32:
            image = x.view(2, h, width, c).permute(0, 3, 1, 2)
            mode = (
                {"mode": "bilinear", "align_corners": corners} if bilinear else {"mode": "nearest"}
            )
            exact = nnf.interpolate(image, (oh, ow), **mode).permute(0, 2, 3, 1).reshape(-1, c)
            torch.testing.assert_close(wanted, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("c", [1, 3, 4, 17, 33])
def test_transpose(isa: str, c: int) -> None:
    for source, target in [(F32, F32), (F32, BF16), (BF16, F32), (F32, U8), (S8, F32), (U8, U8)]:
        x = rows(2 * c, 301, source, seed=c, gap=0)
        quantised = {"scale": 0.02, "zero": 3}
        stride = c + 5
        given = {
            "in": x,
            "in_type": source,
            "to_nhwc": True,
            "n": 2,
            "c": c,
            "pixels": 301,
            "nhwc_stride": stride,
            "out_type": target,
            **quantised,
        }
        wanted = both(isa, "transpose", given, 2 * 301, c, target)
        if source is F32 and target is F32:
            assert torch.equal(wanted.view(2, 301, c).transpose(1, 2).reshape(2 * c, 301), x)
        y = rows(2 * 301, c, source, seed=c)
        given |= {"in": y, "to_nhwc": False}
        results = []
        for level in ("scalar", isa):
            out = torch.zeros(2 * c, 301, dtype=target)
            call(level, "transpose", {**given, "out": out}, 3)
            results.append(out)
        close(results[1], results[0])
