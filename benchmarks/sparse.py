r"""Sparse products against dense ones, kernel by kernel and shape by shape, on one core.

    python benchmarks/sparse.py [--isa amx,avx512_vnni] [--forms tiles,lanes] [--seconds 1] \
        --json FILE

Each row is one kernel (form and precision), shape and share of zero blocks. Three products of the
same shape and precision take turns, the shortest time of each counts: the sparse one, the engine's
own dense one of the same instruction set, and oneDNN's through torch (held to the same instruction
set, weights reordered ahead). A row is written only after the sparse output agreed with the dense
one on the pruned weights, and the dense one with oneDNN. `break_even` holds, for each kernel and
shape, the share of zeros from which on the sparse kernel is the faster one, null where none
measured is; losing rows are rows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
FEWER = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""For masked weights, whose packing is most of the time."""
TRANSFORMER = [
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (384, 1024, 4096),
    (32, 256, 256),
]
"""Rows, inputs, outputs: BERT-base and -large, and the small shape of the SpMM paper."""
MOBILE = [
    (3136, 144, 24),
    (784, 192, 32),
    (784, 32, 192),
    (196, 384, 64),
    (196, 64, 384),
    (196, 576, 96),
    (49, 960, 160),
    (49, 160, 960),
    (49, 320, 1280),
]
"""1 x 1 convolutions of MobileNetV2 at 224: pixels, channels in, channels out."""
SKINNY = [(1, 4096, 4096), (16, 4096, 4096), (64, 4096, 4096)]
"""A decoder's layers. Taking turns, the products' weights are more than any L2 holds."""
CASES = {
    "single": [("float32", (1, 1), MOBILE)],
    "quads": [("float32", (4, 1), MOBILE)],
    "lanes": [
        ("float32", (16, 1), MOBILE + TRANSFORMER[:2]),
        ("bfloat16", (16, 2), TRANSFORMER),
        ("uint8", (16, 4), TRANSFORMER),
    ],
    "tiles": [("bfloat16", (16, 32), TRANSFORMER), ("uint8", (16, 64), TRANSFORMER)],
    "masked": [
        ("bfloat16", (1, 1), SKINNY),
        ("uint8", (1, 1), SKINNY),
        ("float32", (1, 1), SKINNY[:2]),
    ],
}
ONEDNN = {"amx": None, "avx512_vnni": "AVX512_CORE_BF16", "avx2": "AVX2"}
"""What holds oneDNN to the instructions of a level; bf16 dot products come with our VNNI level."""


def measure(isa: str, forms: list[str], seconds: float) -> list[dict[str, Any]]:
    """All rows of one instruction set."""
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for form in forms:
            if form == "tiles" and isa != "amx":
                continue
            for dtype, block, shapes in CASES[form]:
                for shape in shapes:
                    rows += kernel(isa, form, dtype, block, shape, seconds)
    return rows


def kernel(
    isa: str,
    form: str,
    dtype: str,
    block: tuple[int, int],
    shape: tuple[int, int, int],
    seconds: float,
) -> list[dict[str, Any]]:
    """One kernel on one shape over all shares of zeros."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from kernel_cases import call, pack

    m, k, n = shape
    kind = getattr(torch, dtype)
    g = torch.Generator().manual_seed(0)
    held = torch.int8 if dtype == "uint8" else kind
    a = (
        torch.randint(0, 256, (m, k), generator=g, dtype=kind)
        if dtype == "uint8"
        else torch.randn(m, k, generator=g).to(kind)
    )
    whole = (
        torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
        if dtype == "uint8"
        else (torch.randn(n, k, generator=g) / k**0.5).to(kind)
    )
    given: dict[str, Any] = {"a": a, "lda": k, "a_type": kind, "m": m, "n": n, "k": k}
    given |= {"ldc": n, "out_type": kind, "bias": torch.randn(n, generator=g)}
    step = 1 / (100 * k**0.5)
    if dtype == "uint8":
        given |= {
            "scale": torch.full((n,), step / 30),
            "a_zero": 128,
            "out_scale": 0.05,
            "out_zero": 128,
        }
    into = {"type": held, "out": n, "in": k}

    def ours(op: str, weights: torch.Tensor) -> tuple[Callable[[], float], torch.Tensor, float]:
        plain = weights if dtype == "uint8" else weights.float()
        out = torch.empty(m, n, dtype=kind)
        packed = pack(isa, "gemm" if op == "gemm" else f"sparse_{form}", plain, into)
        ready = {**given, "w": packed, "c": out}
        return (lambda: call(isa, op, ready)), out, packed.numel()

    dense, dense_out, dense_bytes = ours("gemm", whole)
    peer = onednn(a, whole, given)
    dense()
    agree(peer(), dense_out, f"oneDNN, {dtype} {shape}")
    blocks = torch.rand(-(-n // block[0]), -(-k // block[1]), generator=g)
    sparse: list[tuple[float, Callable[[], float], float, float]] = []
    for share in FEWER if form == "masked" else SHARES:
        keep = torch.ones_like(blocks, dtype=torch.bool).view(-1)
        keep[blocks.view(-1).argsort()[: round(share * blocks.numel())]] = False
        keep = keep.view_as(blocks).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        pruned = torch.where(keep[:n, :k], whole, torch.zeros_like(whole))
        run, out, nbytes = ours("sparse", pruned)
        run()
        check, wanted, _ = ours("gemm", pruned)
        check()
        error = agree(out, wanted, f"{form} {dtype} {shape} at {share}")
        sparse.append((share, run, nbytes, error))
    best = [math.inf] * (len(sparse) + 2)
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < stop:
        rounds += 1
        start = time.perf_counter()
        peer()
        best[0] = min(best[0], time.perf_counter() - start)
        best[1] = min(best[1], dense())
        for i, (_, run, _, _) in enumerate(sparse):
            best[i + 2] = min(best[i + 2], run())
    rows: list[dict[str, Any]] = []
    for (share, _, nbytes, error), spent in zip(sparse, best[2:], strict=True):
        rows.append(
            {
                "isa": isa,
                "form": form,
                "precision": dtype,
                "block": list(block),
                "rows": m,
                "inputs": k,
                "outputs": n,
                "zeros": share,
                "seconds": spent,
                "dense_s": best[1],
                "onednn_s": best[0],
                "over_dense": best[1] / spent,
                "over_onednn": best[0] / spent,
                "weight_bytes": nbytes,
                "weight_bytes_per_s": nbytes / spent,
                "dense_weight_bytes": dense_bytes,
                "max_error": error,
                "rounds": rounds,
            }
        )
    told = " ".join(f"{r['zeros']:.2f}:{r['over_dense']:.2f}/{r['over_onednn']:.2f}" for r in rows)
    print(f"{isa:12} {form:7} {dtype:9} {m}x{k}x{n}: over dense/oneDNN {told}", flush=True)
    return rows


def onednn(a: Any, w: Any, given: dict[str, Any]) -> Callable[[], Any]:
    """oneDNN's product of the same operands, its weights reordered ahead."""
    import torch

    n = w.shape[0]
    if a.dtype.is_floating_point:
        ready = torch.ops.mkldnn._reorder_linear_weight(w, a.shape[0])
        bias = given["bias"].to(a.dtype)
        return lambda: torch.ops.mkldnn._linear_pointwise(a, ready, bias, "none", [], "")
    ready = torch.ops.onednn.qlinear_prepack(w.contiguous(), None)
    scales, zeros = given["scale"].clone(), torch.zeros(n, dtype=torch.int32)
    ends = (given["bias"], given["out_scale"], given["out_zero"], torch.uint8, "none", [], "")
    product = torch.ops.onednn.qlinear_pointwise
    return lambda: product(a, 1.0, given["a_zero"], ready, scales, zeros, *ends)


def agree(got: Any, wanted: Any, what: str) -> float:
    """The largest difference, relative to the largest output (uint8: in units).

    Ends the run where it is more than rounding.
    """
    a, b = got.double(), wanted.double()
    error = float((a - b).abs().max())
    if wanted.dtype.is_floating_point:
        error /= float(b.abs().max())
    limit = {"float32": 1e-4, "bfloat16": 2e-2, "uint8": 1.0}[str(wanted.dtype)[6:]]
    if not error <= limit:
        raise SystemExit(f"{what}: the outputs differ by {error:.3g}")
    return error


def break_even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kernel and shape the share of zeros from which on it wins, between measured ones."""
    found: list[dict[str, Any]] = []
    keys = ("isa", "form", "precision", "rows", "inputs", "outputs")
    for at in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
        mine = [r for r in rows if tuple(r[k] for k in keys) == at]
        found.append(
            dict(zip(keys, at, strict=True))
            | {f"zeros_{peer}": _crossing(mine, f"over_{peer}") for peer in ("dense", "onednn")}
            | {f"at_0.9_{peer}": _at(mine, 0.9, f"over_{peer}") for peer in ("dense", "onednn")}
        )
    return found


def _at(rows: list[dict[str, Any]], zeros: float, name: str) -> float:
    return next(r[name] for r in rows if r["zeros"] == zeros)


def _crossing(rows: list[dict[str, Any]], name: str) -> float | None:
    """Interpolated in time, which is nearly linear in the share of weights left."""
    last = None
    for r in reversed(rows):
        if r[name] < 1:
            if last is None:
                return None
            slow, fast = 1 / r[name], 1 / last[name]
            part = (slow - 1) / (slow - fast)
            return round(r["zeros"] + part * (last["zeros"] - r["zeros"]), 3)
        last = r
    return 0.0


def written(document: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    text = json.dumps({k: v for k, v in document.items() if not isinstance(v, list)}, indent=1)
    for name, rows in document.items():
        if isinstance(rows, list):
            lines = ",\n  ".join(json.dumps(row) for row in rows)
            text = f'{text[:-2]},\n "{name}": [\n  {lines}\n ]\n}}'
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default="amx,avx512_vnni")
    parser.add_argument("--forms", default="single,quads,lanes,tiles,masked")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each kernel and shape")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help="measure one instruction set and print rows")
    args = parser.parse_args()
    forms = args.forms.split(",")
    if args.child:
        print("ROWS" + json.dumps(measure(args.child, forms, args.seconds)))
        return
    rows: list[dict[str, Any]] = []
    for isa in args.isa.split(","):
        held = ONEDNN[isa]
        env = os.environ | ({"ONEDNN_MAX_CPU_ISA": held} if held else {})
        how = [sys.executable, *(["-S"] if sys.flags.no_site else []), __file__, "--child", isa]
        how += ["--forms", args.forms, "--seconds", str(args.seconds)]
        with subprocess.Popen(how, env=env, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("ROWS"):
                    rows += json.loads(line[4:])
                else:
                    print(line, end="", flush=True)
        if child.returncode:
            raise SystemExit(child.returncode)
    if args.json is not None:
        from paredown.measure.fingerprint import fingerprint

        document = {
            "schema": 1,
            "machine": fingerprint().model_dump(mode="json"),
            "threads": 1,
            "rows": rows,
            "break_even": break_even(rows),
        }
        args.json.write_text(written(document))


if __name__ == "__main__":
    main()
