"""Claim card of Flash-LLM: load as sparse, compute as dense (Xia et al. 2023, arXiv:2309.10285).

The kernels are timed, on matrices pruned at random. The paper's tokens per second of OPT on GPUs,
and that pruned models of that size keep their quality, are not tried.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from paredown import kernels
from paredown.figure import Figure, counted
from paredown.papers.card import Check, Experiment, Progress, Scale
from paredown.papers.cards._sparse import Run, product
from paredown.papers.cards.sparse_kernels import CardOfKernels, over, speed_check
from paredown.papers.timing import Rows, side_by_side

ISA = "amx"
WIDTH, LAYERS = 4096, 4
"""Four matrices of 32 MiB in bf16 run in turn: no layer is in any cache when its turn comes."""
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def thinned(weight: Tensor, share: float, seed: int) -> Tensor:
    """``weight`` with about ``share`` of its elements, at random, zero."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(weight.shape, generator=generator) >= share
    return torch.where(keep, weight, torch.zeros_like(weight))


def differing_bits() -> int:
    """Results other than the dense kernel's on the pruned weights, to the bit, at odd shapes."""
    count = 0
    g = torch.Generator().manual_seed(0)
    for m, k, n in [(1, 63, 33), (3, 64, 32), (16, 192, 70), (33, 100, 17), (64, 130, 96)]:
        floats = (torch.randn(m, k, generator=g), torch.randn(n, k, generator=g))
        codes = (
            torch.randint(0, 256, (m, k), generator=g, dtype=torch.uint8),
            torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8),
        )
        halves = (floats[0].bfloat16(), floats[1].bfloat16())
        for a, w in (floats, halves, codes):
            for share in (0.0, *SHARES, 1.0):
                held = thinned(w, share, seed=1)
                (masked, got), (dense, wanted) = (
                    product(ISA, f, a, held) for f in ("masked", None)
                )
                masked()
                dense()
                count += int((got != wanted).sum())
    return count


class Stack:
    """Layers run one after the other over the same rows, for each number of rows."""

    def __init__(self, weights: list[Tensor], form: str | None, rows: list[int]) -> None:
        module: Any = kernels.native()
        self.given = [torch.randn(m, WIDTH).bfloat16().view(torch.uint8).numpy() for m in rows]
        self.taken = [torch.empty(m, WIDTH).view(torch.uint8).numpy() for m in rows]
        sizes = ([a.nbytes for a in self.given], [c.nbytes for c in self.taken])
        self.engine: Any = module.Engine(ISA, 1, 0, *sizes)
        shape = {"type": "bfloat16", "out": WIDTH, "in": WIDTH}
        kind = "dense" if form is None else f"sparse_{form}"
        places = [self.engine.weights(kind, shape, w.float().numpy()) for w in weights]
        for i, m in enumerate(rows):
            for at in places:
                fields: dict[str, Any] = {"a": ("input", i, 0), "c": ("output", i, 0)}
                fields |= {"w": ("constant", at, 0), "a_type": "bfloat16", "lda": WIDTH}
                fields |= {"ldc": WIDTH, "m": m, "n": WIDTH, "k": WIDTH}
                self.engine.add("gemm" if form is None else "sparse", fields)
        self.engine.finish()

    def run_of(self, index: int) -> Run:
        """A run of every layer with the rows of that index."""
        steps = (index * LAYERS, (index + 1) * LAYERS)
        return lambda: self.engine.run(self.given, self.taken, *steps)


def stacks() -> dict[str, list[Tensor]]:
    """The layers' weights by how they are named."""
    g = torch.Generator().manual_seed(0)
    whole = (torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5).bfloat16()
    found = {"dense": [whole] * LAYERS}
    return found | {f"{s:.0%}": [thinned(whole, s, i) for i in range(LAYERS)] for s in SHARES}


def subjects(rows: list[int]) -> list[tuple[str, Run]]:
    """Every stack with every number of rows (in the timing child)."""
    made: list[tuple[str, Run]] = []
    for name, weights in stacks().items():
        stack = Stack(weights, None if name == "dense" else "masked", rows)
        made += [(f"{name}, {m}", stack.run_of(i)) for i, m in enumerate(rows)]
    return made


def packed_bytes() -> dict[str, int]:
    """Bytes of a layer's weights as the kernels hold them, by share of zeros, and how many are told
    by the count: values of two bytes, a bit for every weight, a place for every panel.
    """
    module: Any = kernels.native()
    found: dict[str, int] = {}
    for name, (weight, *_) in stacks().items():
        kind = "gemm" if name == "dense" else "sparse_masked"
        shape = {"type": "bfloat16", "out": WIDTH, "in": WIDTH}
        wide = weight.float()
        found[name] = module.kernel_packed_size(ISA, kind, shape, wide.data_ptr())
        left = int((weight != 0).sum())
        found[f"{name} counted"] = left * 2 + weight.numel() // 8 + WIDTH // 32 * 8
    return found


class FlashLlmCard(CardOfKernels):
    """Products of few rows with 4096 x 4096 weights in bf16, masked against dense."""

    key = "flash-llm"
    claim = (
        "unstructured sparse weights expanded beside dense matrix units speed up skinny products "
        "by what they save of the traffic"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "different": 0.0,
        "bytes": 1e-3,
        "speed_up": 1.3,
        "more": 1.0,
        "bound": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """One thread, AMX; weights beyond the caches, random masks."""
        if (untestable := self.lacking(ISA)) is not None:
            return untestable
        t, quick = self.thresholds, scale == "quick"
        progress("comparing bits")
        different = differing_bits()
        held = packed_bytes()
        shares = [f"{s:.0%}" for s in SHARES]
        beyond = max(held[s] / held[f"{s} counted"] - 1 for s in shares)
        progress("timing")
        rows, seconds = ([1, 16], 15.0) if quick else ([1, 8, 16], 120.0)
        timed = side_by_side(subjects, rows, seconds=seconds, threads=1, limit_s=seconds + 180)
        checks = [
            Check("results that differ from the dense kernel's bits", different, "<=", 0.0),
            Check("packed bytes beyond the count, relative", beyond, "<=", t["bytes"]),
        ]
        for m in rows:
            gains = {s: over(timed, f"dense, {m}", f"{s}, {m}") for s in shares}
            checks.append(
                speed_check(f"80 % over dense, {m} rows", timed, f"dense, {m}", f"80%, {m}", 1.3)
            )
            more = min(over(timed, f"{a}, {m}", f"{b}, {m}") for a, b in pairwise(shares))
            checks.append(Check(f"least gain of more zeros, {m} rows", more[0], ">=", 1.0, more[1]))
            saved = {s: held[s] / held["dense"] for s in shares}
            bound = max((v * saved[s], p * saved[s]) for s, (v, p) in gains.items())
            checks.append(Check(f"of the traffic bound, {m} rows", bound[0], "<=", 1.0, bound[1]))
        figures: dict[str, Figure] = {
            f"bytes over dense, {s}": counted(held[s] / held["dense"], "1") for s in shares
        }
        figures["a/a ratio"] = timed["a/a"]["ratio"]
        return Experiment(figures, checks, [0], {"times": _table(timed)})


def _table(timed: Rows) -> list[dict[str, Any]]:
    return [
        {
            "product": name,
            "seconds": row["latency"].value,
            "over_dense": over(timed, f"dense,{name.partition(',')[2]}", name)[0],
        }
        for name, row in timed.items()
        if name != "a/a"
    ]
