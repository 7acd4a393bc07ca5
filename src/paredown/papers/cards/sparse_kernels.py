"""Claim cards of sparse kernels: Fast Sparse ConvNets (Elsen et al. 2019, arXiv:1911.09723) and the
sparse accelerator for transformers on CPUs (Shen et al. 2023, arXiv:2306.16601).

Both cards time kernels, weights pruned at random. That pruned networks keep their accuracy is the
other half of both papers: it needs training that these cards do not do.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from paredown import kernels
from paredown.figure import Figure
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards._sparse import Run, onednn, product, pruned
from paredown.papers.timing import Rows, side_by_side

MOBILENETV2 = (
    [(112, 32, 16), (112, 16, 96), (56, 96, 24), (56, 144, 24), (28, 144, 32)]
    + [(56, 24, 144)] * 2
    + [(28, 32, 192)] * 3
    + [(28, 192, 32)] * 2
    + [(14, 192, 64), (14, 384, 96), (7, 576, 160), (7, 960, 320), (7, 320, 1280)]
    + [(14, 64, 384)] * 4
    + [(14, 384, 64)] * 3
    + [(14, 96, 576)] * 3
    + [(14, 576, 96)] * 2
    + [(7, 160, 960)] * 3
    + [(7, 960, 160)] * 2
)
"""Side, channels in and out of every 1 x 1 convolution of MobileNetV2-1.0 at 224."""
ENCODERS = [(256, 256), (768, 768), (768, 3072), (1024, 4096)]
"""Inputs and outputs of the paper's linear layers."""
SHARES = (0.7, 0.8, 0.9, 0.95)
VECTORS = "avx512_vnni"


def all_of(runs: list[Run]) -> Run:
    """One run after the other as one subject: ratios are weighted by time."""

    def run() -> None:
        for one in runs:
            one()

    return run


def matrices(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Activations ``(m, k)`` and weights ``(n, k)`` of each ``(m, k, n)``."""
    g = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, Tensor]] = []
    for m, k, n in shapes:
        if dtype is torch.float32:
            found.append((torch.randn(m, k, generator=g), torch.randn(n, k, generator=g) / k**0.5))
        else:
            a = torch.randint(0, 256, (m, k), generator=g, dtype=torch.uint8)
            found.append((a, torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)))
    return found


def worst_error(isa: str, form: str, block: tuple[int, int], dtype: torch.dtype) -> float:
    """Largest difference from the exact product over odd shapes and all shares, over the largest
    output; for integers as it is.
    """
    worst = 0.0
    for a, w in matrices([(1, 7, 3), (17, 63, 33), (49, 144, 24), (130, 200, 70)], dtype):
        for share in (0.0, *SHARES, 1.0):
            held = pruned(w, share, block, seed=1)
            run, got = product(isa, form, a, held)
            run()
            x = a.double() - (0 if dtype is torch.float32 else 128)
            wanted = x @ held.double().T
            size = max(1.0, float(wanted.abs().max())) if dtype is torch.float32 else 1.0
            worst = max(worst, float((got.double() - wanted).abs().max()) / size)
    return worst


def pointwise(isa: str) -> list[tuple[str, Run]]:
    """All 1 x 1 convolutions of MobileNetV2, dense and sparse, float32 (in the timing child).

    Results go into one place, as in the engine's arena and as torch's allocator has it for oneDNN.
    """
    pairs = matrices([(s * s, k, n) for s, k, n in MOBILENETV2], torch.float32)
    room = torch.empty(max(a.shape[0] * w.shape[0] for a, w in pairs))
    subjects = [
        ("oneDNN", all_of([onednn(a, w) for a, w in pairs])),
        ("dense", all_of([product(isa, None, a, w, room)[0] for a, w in pairs])),
    ]
    for name, form, block, share in [
        *((f"{s:.0%}", "single", (1, 1), s) for s in SHARES),
        ("4 x 1, 90%", "quads", (4, 1), 0.9),
    ]:
        runs = [product(isa, form, a, pruned(w, share, block, 1), room)[0] for a, w in pairs]
        subjects.append((name, all_of(runs)))
    return subjects


def encoders(isa: str, tokens: list[int]) -> list[tuple[str, Run]]:
    """The encoders' layers in int8 and as lists of float32 values (in the timing child)."""
    from scipy import sparse

    if isa == VECTORS:  # read when oneDNN is first used, which is below
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
    pairs = matrices([(m, k, n) for m in tokens for k, n in ENCODERS], torch.uint8)
    subjects = [("oneDNN int8", all_of([onednn(a, w) for a, w in pairs]))]
    floats = [(a.float(), w.float()) for a, w in pairs]
    subjects.append(("oneDNN float32", all_of([onednn(a, w) for a, w in floats])))
    form, block = ("lanes", (16, 4)) if isa == VECTORS else ("tiles", (16, 64))
    for share in SHARES:
        runs = [product(isa, form, a, pruned(w, share, block, 1))[0] for a, w in pairs]
        subjects.append((f"{share:.0%}", all_of(runs)))
    lists = [(sparse.csr_matrix(pruned(w, 0.9, block, 1).numpy()), a.T.numpy()) for a, w in floats]
    subjects.append(("CSR, 90%", all_of([lambda w=w, a=a: w @ a for w, a in lists])))
    return subjects


def over(rows: Rows, slow: str, fast: str) -> tuple[float, float]:
    """How many times the time of ``slow`` is that of ``fast``, and how uncertain that is."""
    a, b = rows[slow]["ratio"], rows[fast]["ratio"]
    value = a.known() / b.known()
    return value, value * (half_width(a) / a.known() + half_width(b) / b.known())


def speed_check(name: str, rows: Rows, slow: str, fast: str, threshold: float) -> Check:
    """A check that ``fast`` is at least so many times as fast as ``slow``."""
    value, power = over(rows, slow, fast)
    return Check(name, value, ">=", threshold, power, "x")


class CardOfKernels(Card):
    """What both cards share: no kernels, no verdict."""

    def lacking(self, isa: str) -> Experiment | None:
        """An experiment that says why nothing can be decided, None where the level is usable."""
        module: Any = kernels.native()
        levels: list[str] = module.levels() if module is not None else []
        if isa in levels:
            return None
        return Experiment({}, [], [0], untestable=f"no kernels of the level {isa} on this machine")


class FastSparseConvNetsCard(CardOfKernels):
    """Every 1 x 1 convolution of MobileNetV2, float32, sparse against oneDNN's dense ones."""

    key = "fast-sparse-convnets"
    claim = (
        "unstructured sparse 1 x 1 convolutions of MobileNet-class networks are 1.3 to 2.4 times "
        "as fast as dense ones, and 4 x 1 blocks faster still"
    )
    thresholds: ClassVar[dict[str, float]] = {"error": 1e-5, "speed_up": 1.3, "blocks": 1.0}

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """One thread, AVX-512, random masks; all 34 layers one after the other."""
        if (untestable := self.lacking("avx512")) is not None:
            return untestable
        t = self.thresholds
        progress("comparing with exact products")
        worst = max(
            worst_error("avx512", "single", (1, 1), torch.float32),
            worst_error("avx512", "quads", (4, 1), torch.float32),
        )
        progress("timing")
        seconds = 20.0 if scale == "quick" else 120.0
        rows = side_by_side(pointwise, "avx512", seconds=seconds, threads=1, limit_s=seconds + 120)
        checks = [
            Check("largest error", worst, "<=", t["error"]),
            speed_check("90 % sparse over oneDNN dense", rows, "oneDNN", "90%", t["speed_up"]),
            speed_check("4 x 1 blocks over single weights", rows, "90%", "4 x 1, 90%", t["blocks"]),
        ]
        return Experiment(_figures(rows), checks, [0], {"times": _table(rows)})


class SpmmVnniCard(CardOfKernels):
    """Linear layers of encoders in int8 by block-sparse kernels against oneDNN and lists (CSR)."""

    key = "spmm-vnni"
    claim = (
        "block-sparse int8 products by VNNI at 90 % are several times as fast as oneDNN's dense "
        "int8 ones and an order of magnitude faster than sparse libraries"
    )
    thresholds: ClassVar[dict[str, float]] = {"wrong": 0.0, "dense": 2.0, "csr": 5.0, "more": 1.0}

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """One thread, VNNI on both sides; AMX on both sides beside it where there is one."""
        if (untestable := self.lacking(VECTORS)) is not None:
            return untestable
        t, quick = self.thresholds, scale == "quick"
        progress("comparing with exact products")
        wrong = worst_error(VECTORS, "lanes", (16, 4), torch.uint8)
        tokens = [128] if quick else [32, 128, 384]
        seconds = 15.0 if quick else 120.0
        progress("timing")
        rows = side_by_side(
            encoders, VECTORS, tokens, seconds=seconds, threads=1, limit_s=seconds + 120
        )
        figures, tables = _figures(rows), {"times": _table(rows)}
        if self.lacking("amx") is None:
            tiles = side_by_side(
                encoders, "amx", tokens, seconds=seconds, threads=1, limit_s=seconds + 120
            )
            figures |= {f"AMX, {name}": f for name, f in _figures(tiles).items()}
            tables["times, AMX"] = _table(tiles)
        checks = [
            Check("largest difference from the integer product", wrong, "<=", t["wrong"]),
            speed_check(
                "90 % sparse over oneDNN int8, both VNNI", rows, "oneDNN int8", "90%", t["dense"]
            ),
            speed_check("90 % sparse over CSR", rows, "CSR, 90%", "90%", t["csr"]),
            *(
                speed_check(f"{b:.0%} over {a:.0%}", rows, f"{a:.0%}", f"{b:.0%}", t["more"])
                for a, b in pairwise(SHARES)
            ),
        ]
        return Experiment(figures, checks, [0], tables)


def _figures(rows: Rows) -> dict[str, Figure]:
    found = {f"time over oneDNN, {n}": r["ratio"] for n, r in rows.items() if n != "a/a"}
    return found | {"a/a ratio": rows["a/a"]["ratio"]}


def _table(rows: Rows) -> list[dict[str, Any]]:
    return [
        {"product": name, "seconds": r["latency"].value, "over_onednn": r["ratio"].value}
        for name, r in rows.items()
        if name != "a/a"
    ]
