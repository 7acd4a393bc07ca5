"""The native engine's kernels against oneDNN (through torch), shape by shape, on one core.

    [ONEDNN_MAX_CPU_ISA=AVX2] python benchmarks/native_kernels.py [--isa avx2] [--rounds 40]
        [--only conv] [--dtypes float32] --json benchmarks/results/native_kernels_avx2.json

The two take turns, the shortest time of each counts, and a row is printed only after both outputs
agreed. oneDNN gets weights reordered ahead (`mkldnn::_linear_pointwise`,
`mkldnn::_convolution_pointwise`), NHWC activations and no epilogue but the bias; int8 rows have no
peer here. oneDNN takes the best instructions of this machine unless its own variable holds it back; the
file names what it was allowed. Bandwidth-bound rows give bytes of weights per second and the share
of this machine's read bandwidth over the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kernel_cases import call, fields, native, pack

from paredown import kernels
from paredown.measure.fingerprint import fingerprint

F32, BF16, U8, S8 = torch.float32, torch.bfloat16, torch.uint8, torch.int8
GEMMS = [
    (197, 384, 1152),
    (197, 384, 1536),
    (197, 1536, 384),
    (197, 384, 384),
    (128, 768, 3072),
    (3136, 96, 384),
    (784, 512, 128),
    (3136, 64, 256),
    (1, 2048, 1000),
]
# side, channels in, out, kernel, stride
CONVS = [
    (224, 3, 64, 7, 2),
    (56, 64, 64, 3, 1),
    (28, 128, 128, 3, 1),
    (14, 256, 256, 3, 1),
    (7, 512, 512, 3, 1),
    (56, 128, 128, 3, 2),
    (56, 256, 512, 1, 2),
    (224, 3, 96, 4, 4),
]
DEPTHWISE = [
    (112, 32, 3, 1),
    (56, 144, 3, 1),
    (14, 576, 3, 1),
    (7, 960, 3, 1),
    (56, 96, 7, 1),
    (14, 384, 7, 1),
]
ATTENTION = [(6, 197, 64), (12, 128, 64), (8, 1024, 64)]
MATVECS = [(4096, 4096), (11008, 4096)]


def data(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(*((0, 256) if dtype is U8 else (-127, 128)), shape, dtype=dtype)


def packed(isa: str, kind: str, weights: torch.Tensor, shape: dict[str, Any]) -> torch.Tensor:
    dtype = weights.dtype if weights.dtype is S8 else shape["type"]
    return pack(isa, kind, weights if dtype is S8 else weights.float(), shape)


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square difference over root mean square of the peer's output."""
    ours, theirs = ours.double().flatten(), theirs.double().flatten()
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())


def row(
    name: str,
    dtype: torch.dtype,
    work: float,
    unit: str,
    ours: Callable[[], float],
    theirs: Callable[[], torch.Tensor] | None,
    out: torch.Tensor,
    rounds: int,
) -> dict[str, Any]:
    ours()
    result: dict[str, Any] = {"shape": name, "dtype": str(dtype)[6:], "unit": unit}
    error, peer = None, float("inf")
    if theirs is not None:
        error = agree(out, theirs())
        if not error < (1e-4 if dtype is F32 else 2e-2):
            raise SystemExit(f"{name} {dtype}: the outputs differ by {error:.3g} of their size")
    best = float("inf")
    for _ in range(rounds):
        best = min(best, ours())
        if theirs is not None:
            start = time.perf_counter()
            theirs()
            peer = min(peer, time.perf_counter() - start)
    result |= {
        "ours": work / best,
        "peer": None if theirs is None else work / peer,
        "ratio": None if theirs is None else peer / best,
        "error": error,
        "seconds": best,
    }
    told = "" if theirs is None else f", oneDNN {work / peer / 1e9:8.1f}, ratio {peer / best:.2f}"
    print(f"{name:34} {result['dtype']:9} {work / best / 1e9:8.1f} G{unit}{told}", flush=True)
    return result


def gemm(isa: str, m: int, k: int, n: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    integer = not dtype.is_floating_point
    a, w, bias = data((m, k), dtype), data((n, k), S8 if integer else dtype), torch.randn(n)
    out = torch.empty(m, n, dtype=dtype)
    p = packed(isa, "gemm", w, {"type": w.dtype, "out": n, "in": k})
    given = {
        "a": a,
        "lda": k,
        "a_type": dtype,
        "m": m,
        "n": n,
        "k": k,
        "w": p,
        "c": out,
        "ldc": n,
        "out_type": dtype,
        "bias": bias,
    }
    if integer:
        given |= {"scale": torch.full((n,), 1e-4), "a_zero": 128, "out_scale": 0.1, "out_zero": 128}
    theirs = None
    if not integer:
        reordered = torch.ops.mkldnn._reorder_linear_weight(w, m)
        b = bias.to(dtype)
        theirs = lambda: torch.ops.mkldnn._linear_pointwise(a, reordered, b, "none", [], "")  # noqa: E731
    return row(
        f"gemm {m}x{k}x{n}",
        dtype,
        2 * m * n * k,
        "FLOP/s",
        lambda: call(isa, "gemm", given),
        theirs,
        out,
        rounds,
    )


def conv(
    isa: str,
    side: int,
    c: int,
    out_c: int,
    k: int,
    stride: int,
    dtype: torch.dtype,
    rounds: int,
    depthwise: bool = False,
) -> dict[str, Any]:
    integer, groups, pad = (
        not dtype.is_floating_point,
        c if depthwise else 1,
        0 if k == 4 else k // 2,
    )
    kind = "depthwise" if depthwise else "conv"
    x, bias = data((side * side, c), dtype), torch.randn(out_c)
    w = data((out_c, c // groups, k, k), S8 if integer else dtype)
    to = (side + 2 * pad - k) // stride + 1
    out = torch.empty(to * to, out_c, dtype=dtype)
    p = packed(
        isa, kind, w, {"type": w.dtype, "out": out_c, "in": c, "kh": k, "kw": k, "groups": groups}
    )
    given = {
        "in": x,
        "in_stride": c,
        "in_type": dtype,
        "weight_type": w.dtype,
        "h": side,
        "width": side,
        "c": c,
        "out_h": to,
        "out_w": to,
        "out_c": out_c,
        "kh": k,
        "kw": k,
        "stride_h": stride,
        "stride_w": stride,
        "pad_top": pad,
        "pad_left": pad,
        "groups": groups,
        "w": p,
        "out": out,
        "out_stride": out_c,
        "out_type": dtype,
        "bias": bias,
    }
    if integer:
        given |= {
            "scale": torch.full((out_c,), 1e-4),
            "in_zero": 128,
            "out_scale": 0.1,
            "out_zero": 128,
        }
    theirs = None
    if not integer:
        image = x.view(1, side, side, c).permute(0, 3, 1, 2)
        geometry = ([pad, pad], [stride, stride], [1, 1], groups)
        ready = torch._C._nn.mkldnn_reorder_conv2d_weight(
            w.to_mkldnn(), *geometry, [1, c, side, side]
        )
        b = bias.to(dtype)
        run = torch.ops.mkldnn._convolution_pointwise
        theirs = lambda: run(image, ready, b, *geometry, "none", [], "").permute(0, 2, 3, 1)  # noqa: E731
    name = f"{kind} {side}x{side} {c}->{out_c} k{k} s{stride}"
    work = 2 * to * to * out_c * (c // groups) * k * k
    return row(name, dtype, work, "FLOP/s", lambda: call(isa, kind, given), theirs, out, rounds)


def attend(
    isa: str, heads: int, length: int, dim: int, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    q, k, v, out = (data((length, heads * dim), dtype) for _ in range(4))
    given: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "type": dtype,
        "heads": heads,
        "kv_heads": heads,
        "q_len": length,
        "kv_len": length,
        "dim": dim,
        "scale": dim**-0.5,
    }
    for name in ("q", "k", "v", "out"):
        given |= {f"{name}_head": dim, f"{name}_row": heads * dim}
    split = [t.view(1, length, heads, dim).transpose(1, 2) for t in (q, k, v)]
    theirs = lambda: torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2)  # noqa: E731
    return row(
        f"attention {heads}x{length}x{dim}",
        dtype,
        4 * heads * length * length * dim,
        "FLOP/s",
        lambda: call(isa, "attention", given),
        theirs,
        out,
        rounds,
    )


def matvec(isa: str, n: int, k: int, bits: int, rounds: int) -> dict[str, Any]:
    q = torch.randint(-8, 8, (n, k), dtype=S8)
    scales, x, y = torch.rand(n, k // 64), torch.randn(1, k), torch.empty(1, n)
    given: dict[str, Any] = {
        "x": x,
        "ldx": k,
        "bits": bits,
        "group": 64,
        "m": 1,
        "n": n,
        "k": k,
        "y": y,
        "ldy": n,
    }
    size = native.kernel_packed_size(isa, "matvec", fields(given))
    whole = torch.zeros(size + 64, dtype=torch.uint8)
    given["w"] = whole[-whole.data_ptr() % 64 :]
    native.kernel_pack(
        isa, "matvec", fields(given), q.data_ptr(), scales.data_ptr(), given["w"].data_ptr()
    )
    result = row(
        f"matvec {n}x{k} int{bits}",
        F32,
        size,
        "B/s",
        lambda: call(isa, "matvec", given),
        None,
        y,
        rounds,
    )
    exact = (q.float().view(n, -1, 64) * scales[:, :, None]).view(n, k) @ x[0]
    if agree(y, exact) > 1e-4:
        raise SystemExit(f"matvec int{bits}: wrong output")
    limit = native.bandwidth("read", size, isa, [0], 1.0)["best"]
    print(f"{'':34} {result['ours'] / limit:.2f} of the read bandwidth over {size / 2**20:.0f} MiB")
    return result | {"bandwidth_share": result["ours"] / limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=kernels.isa())
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="gemm, conv, depthwise, attention or matvec")
    parser.add_argument(
        "--dtypes",
        default="float32,bfloat16,uint8",
        help="oneDNN that is held back to AVX2 has no bfloat16",
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    isa, rounds = args.isa, args.rounds
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for dtype in (getattr(torch, name) for name in args.dtypes.split(",")):
            if args.only in ("", "gemm"):
                rows += [gemm(isa, *shape, dtype, rounds) for shape in GEMMS]
            if args.only in ("", "conv"):
                rows += [conv(isa, *shape, dtype, rounds) for shape in CONVS]
            if args.only in ("", "depthwise"):
                rows += [
                    conv(isa, side, c, c, k, s, dtype, rounds, True) for side, c, k, s in DEPTHWISE
                ]
            if args.only in ("", "attention") and dtype.is_floating_point:
                rows += [attend(isa, *shape, dtype, rounds) for shape in ATTENTION]
        if args.only in ("", "matvec"):
            rows += [matvec(isa, *shape, bits, rounds) for shape in MATVECS for bits in (8, 4)]
    if args.json is not None:
        machine = fingerprint()
        document = {
            "schema": 1,
            "isa": isa,
            "peer_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
            "rounds": rounds,
            "threads": 1,
            "rows": rows,
            "machine": machine if isinstance(machine, dict) else machine.model_dump(mode="json"),
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
