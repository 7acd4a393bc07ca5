"""Claim card of SLAB: progressive batch norm and simplified linear attention (2405.11582)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown.figure import Figure, measured
from paredown.nn import SelfAttention, SimplifiedLinearAttention
from paredown.nn.norm import replace_norms
from paredown.nn.progressive_norm import ProgressiveNorm, RepBatchNorm, fold_progressive
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _scans, _task
from paredown.papers.timing import Rows, side_by_side
from paredown.zoo.vit import ViT

EPOCHS = {"quick": 12, "full": 60}
BATCH, CANVAS = 24, 16
SIDES = (16, 32, 64)
CHANNELS, HEADS = 96, 3


class BatchNormTokens(RepBatchNorm):
    """Plain batch norm over tokens: the re-parameterised one without its skip."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.eta.data.zero_()
        self.eta.requires_grad_(False)


def small_vit(name: str) -> nn.Module:
    """A tiny ViT whose norms are layer, batch or progressive ones; "PRepBN 0.5 100": its steps."""
    kind, *rest = name.split()
    model = ViT(48, 4, 3, 10, 1, image_size=CANVAS, patch=4, mlp_ratio=2)
    if kind == "BN":
        replace_norms(model, nn.LayerNorm, lambda n: BatchNormTokens(n.normalized_shape[0]))
    if kind == "PRepBN":
        steps = int(rest[0])
        replace_norms(model, nn.LayerNorm, lambda n: ProgressiveNorm(n.normalized_shape[0], steps))
    return model


def vits() -> list[tuple[str, Callable[[], Any]]]:
    """ViT-Ti with layer norms, and with progressive norms folded away (in the timing child)."""
    x = torch.randn(1, 3, 224, 224)
    plain = ViT(192, 12, 3).eval()
    folded = ViT(192, 12, 3)
    replace_norms(folded, nn.LayerNorm, lambda n: ProgressiveNorm(n.normalized_shape[0]))
    folded = fold_progressive(folded)
    return [("layer norm", lambda: plain(x)), ("folded", lambda: folded(x))]


def attentions() -> list[tuple[str, Callable[[], Any]]]:
    """Softmax and simplified attention at three numbers of tokens (in the timing child)."""
    runs: list[tuple[str, Callable[[], Any]]] = []
    for side in SIDES:
        x = torch.randn(1, side * side, CHANNELS)
        softmax = SelfAttention(CHANNELS, HEADS).eval()
        linear = SimplifiedLinearAttention(CHANNELS, HEADS, (side, side)).eval()
        runs.append((f"softmax {side}", lambda m=softmax, x=x: m(x)))
        runs.append((f"SLA {side}", lambda m=linear, x=x: m(x)))
    return runs


def slope(rows: Rows, kind: str) -> Figure:
    """Exponent of time in tokens, with what the spread of the latencies could make of it."""
    tokens = np.log([s * s for s in SIDES])
    figures = [rows[f"{kind} {s}"]["latency"] for s in SIDES]
    value = float(np.polyfit(tokens, np.log([f.known() for f in figures]), 1)[0])
    rng = np.random.default_rng(0)
    draws = [
        np.polyfit(
            tokens, np.log([rng.uniform(*(f.spread or (f.known(),) * 2)) for f in figures]), 1
        )
        for _ in range(200)
    ]
    low, high = (float(q) for q in np.quantile([d[0] for d in draws], [0.025, 0.975]))
    return measured(value, "", spread=(min(low, value), max(high, value)), n=len(SIDES))


class SlabCard(Card):
    """Three norms on a tiny ViT, the folded network's time, and how attention's time grows."""

    key = "slab"
    claim = (
        "going from layer norm to a foldable batch norm while training keeps the accuracy that "
        "plain batch norm loses and runs faster; linear attention with a ReLU kernel is linear"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "progressive_minus_layer": -0.01,
        "progressive_minus_batch": 0.0,
        "folded_time_ratio": 1.0,
        "linear_exponent": 1.3,
        "softmax_exponent": 1.6,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Eager fp32 at batch 1 on 2 threads; noisy digits, paired by seed."""
        t = self.thresholds
        quick = scale == "quick"
        progress("timing networks")
        rows = side_by_side(vits, seconds=8.0 if quick else 30.0, threads=2, limit_s=200)
        speed: Figure = rows["folded"]["ratio"]
        progress("timing attention")
        grown = side_by_side(attentions, seconds=8.0 if quick else 30.0, threads=2, limit_s=200)
        linear, softmax = slope(grown, "SLA"), slope(grown, "softmax")
        seeds = list(range(3 if quick else 10))
        plan = _scans.Plan(EPOCHS[scale], BATCH, rate=3e-3, size=CANVAS, canvas=CANVAS)
        # Half of the training blends, the other half is on the batch norm alone.
        progressive = f"PRepBN {EPOCHS[scale] * 720 // BATCH // 2}"
        names = ("LN", "BN", progressive)
        found = _scans.accuracies(small_vit, dict.fromkeys(names, plan), seeds, progress)
        ours = found[progressive]
        checks = [
            _task.not_worse(
                "accuracy, PRepBN minus LN", ours, found["LN"], t["progressive_minus_layer"]
            ),
            _task.not_worse(
                "accuracy, PRepBN minus BN", ours, found["BN"], t["progressive_minus_batch"]
            ),
            Check(
                "time, folded over layer norm",
                speed.known(),
                "<=",
                t["folded_time_ratio"],
                half_width(speed),
                "x",
            ),
            Check(
                "exponent of time in tokens, SLA",
                linear.known(),
                "<=",
                t["linear_exponent"],
                half_width(linear),
            ),
            Check(
                "exponent of time in tokens, softmax",
                softmax.known(),
                ">=",
                t["softmax_exponent"],
                half_width(softmax),
            ),
        ]
        figures: dict[str, Figure] = {
            "time, folded over layer norm": speed,
            "a/a ratio": rows["a/a"]["ratio"],
            "exponent of time in tokens, SLA": linear,
            "exponent of time in tokens, softmax": softmax,
            **{f"accuracy, {n.split()[0]}": mean_figure(a, "") for n, a in found.items()},
        }
        table = [
            {"attention": n, "latency_s": r["latency"].value}
            for n, r in grown.items()
            if "latency" in r
        ]
        return Experiment(figures, checks, seeds, {"attention": table})
