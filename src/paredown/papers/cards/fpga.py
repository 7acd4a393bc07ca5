"""Claim card of InTAR: switching between running tasks one by one and streaming through several."""

from __future__ import annotations

import random
from itertools import combinations
from math import prod
from typing import Any, ClassVar

from paredown import device
from paredown.cost.reconfigure import (
    Machine,
    Plan,
    Task,
    dataflow,
    hybrid,
    machine,
    plan_of,
    sequential,
)
from paredown.figure import Figure, predicted
from paredown.papers.card import Card, Check, Experiment, Progress, Scale

DEVICE = "alveo-u280"
MEMORIES = (None, 4 << 20, 1 << 20, 256 << 10)
"""On-chip bytes: the card's own, and what a smaller share of it leaves."""
WORD = 2
"""Bytes of a number: int16."""


class InTARCard(Card):
    """Five kernels with high variation of data volume, on paper.

    Shapes are those of the authors' code as the catalogue's entry gives them; channels of the CNN
    (16) and rows of the MLP (256) are assumed. Nothing runs on an FPGA here; GPT-2 is left out.
    """

    key = "intar"
    claim = (
        "choosing per group of tasks between sequential and dataflow execution is 1.8x faster than "
        "dataflow alone and 7.1x faster than sequential alone on five kernels"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "plans_off_brute_force": 0,
        "plans_slower_than_a_special_case": 0,
        "speedup_over_dataflow": 1.26,
        "speedup_over_sequential": 4.97,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Random task graphs against all cuts; the kernels on the card and on less memory."""
        t = self.thresholds
        seeds = list(range(40 if scale == "quick" else 400))
        off = sum(off_brute_force(seed) for seed in seeds)
        rows = [row(name, memory) for name in KERNELS for memory in MEMORIES]
        slower = sum(min(r["over_dataflow"], r["over_sequential"]) < 1 - 1e-9 for r in rows)
        own = [r for r in rows if r["share"] == "own"]
        over = {k: mean(own, k) for k in ("over_dataflow", "over_sequential")}
        progress(
            f"{over['over_dataflow']:.2f}x dataflow, {over['over_sequential']:.2f}x sequential"
        )
        checks = [
            Check("plans off the best of all cuts", off, "<=", t["plans_off_brute_force"]),
            Check("plans slower than a special case", slower, "<=",
                  t["plans_slower_than_a_special_case"]),
            Check("speed-up over dataflow alone, geometric mean", over["over_dataflow"], ">=",
                  t["speedup_over_dataflow"], unit="x"),
            Check("speed-up over sequential alone, geometric mean", over["over_sequential"], ">=",
                  t["speedup_over_sequential"], unit="x"),
        ]  # fmt: skip
        figures: dict[str, Figure] = {}
        for memory in MEMORIES[1:]:
            less = [r for r in rows if r["share"] == share(memory)]
            for key, words in (("over_dataflow", "dataflow"), ("over_sequential", "sequential")):
                name = f"speed-up over {words} with {less[0]['share']} on chip"
                figures[name] = predicted(round(mean(less, key), 3), "x")
        return Experiment(figures, checks, seeds, {"kernels": rows})


def row(name: str, memory: int | None) -> dict[str, Any]:
    """One kernel by the three ways."""
    where = machine(device.load(DEVICE))
    if memory is not None:
        where = Machine(where.macs_s, memory, where.bytes_s, where.cores)
    work = KERNELS[name]
    best = hybrid(work, where)
    return {
        "kernel": name,
        "share": share(memory),
        "seconds": best.seconds,
        "groups": [b - a for a, b in best.groups],
        "over_dataflow": dataflow(work, where).seconds / best.seconds,
        "over_sequential": sequential(work, where).seconds / best.seconds,
    }


def share(memory: int | None) -> str:
    """How much is on chip, in words."""
    return "own" if memory is None else f"{memory >> 10} KiB"


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Geometric mean."""
    return prod(r[key] for r in rows) ** (1 / len(rows))


def off_brute_force(seed: int) -> bool:
    """Whether the plan of a random chain of up to seven tasks is not the best of all cuts."""
    r = random.Random(seed)
    n = r.randint(2, 7)
    work = [
        Task(f"t{i}", r.randint(1, 99), r.randint(0, 60), min(n - 1, i + r.choice([1, 1, 2])),
             r.randint(0, 9), r.random() < 0.3)
        for i in range(n)
    ]  # fmt: skip
    where = Machine(1e9, r.choice([10, 60, 500]), 10 ** r.uniform(7, 10))
    every: list[Plan] = []
    for count in range(n):
        for cuts in combinations(range(1, n), count):
            edges = ((0, *cuts), (*cuts, n))
            every.append(plan_of(work, tuple(zip(*edges, strict=True)), where))
    truth = min(p.seconds for p in every)
    return abs(hybrid(work, where).seconds - truth) > 1e-12 * truth


def products(*shapes: tuple[int, int, int], rows: int) -> list[Task]:
    """Dense layers ``(inputs, outputs, reads from memory)`` one after the other over ``rows``."""
    last = len(shapes) - 1
    return [
        Task(
            f"dense{i}", rows * a * b, rows * b * WORD if i < last else 0, min(i + 1, last),
            a * b * WORD + extra * WORD + (rows * b * WORD if i == last else 0),
        )
        for i, (a, b, extra) in enumerate(shapes)
    ]  # fmt: skip


def attention(tokens: int, width: int) -> list[Task]:
    """Queries, keys, values, scores, mixture: the last two need all of their second factor."""
    dense, full = tokens * width * width, tokens * width * WORD
    weights = width * width * WORD
    scores = tokens * tokens * WORD
    return [
        Task("queries", dense, full, 3, weights + full),
        Task("keys", dense, full, 3, weights),
        Task("values", dense, full, 4, weights),
        Task("scores", tokens * tokens * width, scores, 4, 0, whole=True),
        Task("mixture", tokens * tokens * width, 0, 4, full, whole=True),
    ]


def convolutions(
    sides: tuple[int, ...], channels: tuple[int, ...], kernels: tuple[int, ...]
) -> list[Task]:
    """Convolutions between maps of these sides and channels; upsampling included in the store."""
    found: list[Task] = []
    last = len(kernels) - 1
    for i, kernel in enumerate(kernels):
        window = channels[i] * kernel * kernel
        out = sides[i + 1] ** 2 * channels[i + 1]
        outside = window * channels[i + 1] * WORD
        outside += sides[0] ** 2 * channels[0] * WORD if i == 0 else 0
        outside += out * WORD if i == last else 0
        made = out * WORD if i < last else 0
        found.append(Task(f"conv{i}", out * window, made, min(i + 1, last), outside))
    return found


def gated(rows: int, width: int, inner: int) -> list[Task]:
    """Gate and up projections, their product with the second, and the way down."""
    held, weights = rows * inner * WORD, width * inner * WORD
    return [
        Task("gate", rows * width * inner, held, 1, weights + rows * width * WORD),
        Task("up", rows * width * inner, held, 2, weights),
        Task("down", rows * width * inner, 0, 2, weights + rows * width * WORD),
    ]


def autoencoder() -> list[Task]:
    """28 x 28, two channels, valid convolutions of 8 and 4, a latent of 324, and back."""
    encoder = convolutions((28, 21, 18), (1, 2, 2), (8, 4))
    flat = 18 * 18 * 2
    middle = [
        Task("latent", flat * 324, 324 * WORD, 3, flat * 324 * WORD, whole=True),
        Task("unfold", flat * 324, flat * WORD, 4, flat * 324 * WORD, whole=True),
    ]
    decoder = convolutions((18, 21, 28), (2, 2, 1), (4, 8))
    chain = [*encoder, *middle, *decoder]
    last = len(chain) - 1
    sizes = {1: 18 * 18 * 2 * WORD}
    return [
        Task(c.name, c.macs, sizes.get(i, c.makes), min(i + 1, last), c.outside, c.whole)
        for i, c in enumerate(chain)
    ]


KERNELS: dict[str, list[Task]] = {
    "attention": attention(256, 1024),
    "MLP": products((256, 1024, 256 * 256), (1024, 2048, 0), (2048, 256, 0), rows=256),
    "CNN": convolutions((224, 448, 896, 448, 224), (3, 16, 16, 16, 16), (3, 3, 3, 3)),
    "gated FFN": gated(32, 4096, 11008),
    "VAE": autoencoder(),
}
