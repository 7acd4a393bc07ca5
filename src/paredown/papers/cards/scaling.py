"""Claim card of Fast and Accurate Model Scaling (arXiv:2103.06877)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown.figure import Figure, counted, measured
from paredown.nn import ConvNormAct
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _task
from paredown.papers.timing import Rows, side_by_side
from paredown.search.scaling import RULES, Shape, scaled
from paredown.zoo.mobilenetv2 import MobileNetV2
from paredown.zoo.regnet import RegNetX

# Large enough that rounding to whole blocks and multiples of 8 hides no exponent; never run.
COUNTED = {
    "regnet": Shape((6, 12, 18, 6), (128, 256, 512, 1024), 224, 16),
    "mobilenetv2": Shape((4, 6, 8, 6), (96, 128, 256, 512), 224),
}
TIMED = Shape((1, 2, 4, 2), (32, 64, 128, 256), 96, 8)
LEARNT = Shape((1, 1, 1), (16, 32, 48), 32, 8)
TIMED_RULES = ("w", "d", "r", "dwr", "dWr")


def build(family: str, shape: Shape) -> nn.Module:
    """A network of the family with this shape, for one-channel images and ten classes."""
    if family == "regnet":
        return RegNetX(shape.depths, shape.widths, shape.group_width or 8, 10, 1, stem=16)
    rows = tuple((6, w, d, 2) for d, w in zip(shape.depths, shape.widths, strict=True))
    return MobileNetV2(1.0, 10, 1, rows=rows, stem=16, last=256)


def counts(family: str, shape: Shape) -> dict[str, int]:
    """MACs, convolution outputs ("activations") and parameters of the stages, without weights.

    Stem and head are left out: the rules scale the stages.
    """
    with torch.device("meta"):
        model = build(family, shape).eval()
        image = torch.empty(1, 1, shape.resolution, shape.resolution)
    stages: Any = model.stages if family == "regnet" else model.blocks
    total = {"macs": 0, "activations": 0, "params": sum(p.numel() for p in stages.parameters())}

    def count(conv: nn.Conv2d, _: Any, out: torch.Tensor) -> None:
        total["activations"] += out.numel()
        total["macs"] += conv.weight.numel() * out.shape[-1] * out.shape[-2]

    for m in list(stages.modules()):
        if isinstance(m, ConvNormAct):
            m.conv.register_forward_hook(count)
            # Neither counts, and torch runs both in Python on meta tensors.
            m.add_module("norm", nn.Identity())
            m.add_module("act", nn.Identity())
    with torch.no_grad():
        model(image)
    return total


def exponents(family: str, rule: str) -> dict[str, float]:
    """How activations and parameters grow with the MACs really reached, over scales 1, 2, 4, 8."""
    found = [counts(family, scaled(COUNTED[family], RULES[rule], s)) for s in (1, 2, 4, 8)]
    work = np.log([c["macs"] for c in found])
    return {
        of: float(np.polyfit(work, np.log([c[of] for c in found]), 1)[0])
        for of in ("activations", "params")
    }


def exponent_error(family: str, rule: str) -> float:
    """The larger distance of the two exponents from the rule's."""
    found = exponents(family, rule)
    return max(
        abs(found["activations"] - RULES[rule].activations),
        abs(found["params"] - RULES[rule].params),
    )


def timed_networks(scales: tuple[int, ...]) -> list[tuple[str, Callable[[], Any]]]:
    """The base network and every rule at every scale, ready to run at batch 1."""
    shapes = {"base": TIMED} | {
        f"{rule} x{s}": scaled(TIMED, RULES[rule], s) for s in scales for rule in TIMED_RULES
    }
    runs: list[tuple[str, Callable[[], Any]]] = []
    for name, shape in shapes.items():
        model = build("regnet", shape).eval()
        x = torch.randn(1, 1, shape.resolution, shape.resolution)
        runs.append((name, lambda m=model, x=x: m(x)))
    return runs


def learnt_network(rule: str) -> nn.Module:
    """The small network of the accuracy experiment, scaled four times by a rule."""
    return build("regnet", scaled(LEARNT, RULES[rule], 4))


class FastScalingCard(Card):
    """Exponents counted exactly; latency of five rules at equal work; accuracy of dWr and dwr."""

    key = "fast-scaling"
    claim = (
        "putting most of the growth into width (dWr) keeps the accuracy of compound scaling while "
        "activations grow about as the square root of the work, so it runs faster"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "exponent_error": 0.05,
        "speedup_over_dwr": 1.0,
        "speedup_over_d": 1.0,
        "activations_minus_macs_spearman": 0.0,
        "accuracy_margin": -0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Eager fp32 on 2 threads, batch 1, all networks interleaved in one run."""
        t = self.thresholds
        worst = max(exponent_error(family, name) for family in COUNTED for name in TIMED_RULES)
        progress("timing scaled networks")
        scales = (4, 8)
        seconds = 15.0 if scale == "quick" else 60.0
        rows = side_by_side(timed_networks, scales, seconds=seconds, threads=2, limit_s=400)
        table = timing_table(rows, scales)
        checks = [Check("worst error of an exponent", worst, "<=", t["exponent_error"])]
        figures: dict[str, Figure] = {"worst error of an exponent": counted(worst, "")}
        for s in scales:
            for other in ("dwr", "d"):
                speed = at_equal_work(rows, table, f"{other} x{s}", f"dWr x{s}")
                name = f"time at equal work, {other} over dWr, x{s}"
                figures[name] = speed
                limit = t[f"speedup_over_{other}"]
                checks.append(Check(name, speed.known(), ">=", limit, half_width(speed), "x"))
        by = {k: spearman(table, k) for k in ("activations", "macs")}
        gain = bootstrap_gain(table)
        figures |= {f"rank correlation of latency with {k}": measured(v, "") for k, v in by.items()}
        figures["a/a ratio"] = rows["a/a"]["ratio"]
        checks.append(
            Check(
                "rank correlation, activations minus MACs",
                by["activations"] - by["macs"],
                ">=",
                t["activations_minus_macs_spearman"],
                half_width(gain),
            )
        )
        seeds = list(range(3 if scale == "quick" else 10))
        budgets = {
            rule: _task.Budget(
                epochs=9 if scale == "quick" else 16,
                size=scaled(LEARNT, RULES[rule], 4).resolution,
            )
            for rule in ("dWr", "dwr")
        }
        found = _task.accuracies(learnt_network, budgets, seeds, progress)
        figures |= {f"accuracy at x4, {n}": mean_figure(a, "") for n, a in found.items()}
        checks.append(
            _task.not_worse(
                "accuracy at x4, dWr minus dwr", found["dWr"], found["dwr"], t["accuracy_margin"]
            )
        )
        return Experiment(figures, checks, seeds, {"networks": table})


def timing_table(rows: Rows, scales: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row per network: its counts, its latency."""
    out: list[dict[str, Any]] = []
    for name, row in rows.items():
        if name == "a/a":
            continue
        rule, _, times = name.partition(" x")
        shape = TIMED if name == "base" else scaled(TIMED, RULES[rule], int(times))
        latency = row["latency"].value
        out.append({"network": name, **counts("regnet", shape), "latency_s": latency})
    assert len(out) == 1 + len(scales) * len(TIMED_RULES)
    return out


def at_equal_work(rows: Rows, table: list[dict[str, Any]], slow: str, fast: str) -> Figure:
    """Seconds per MAC of one network over another's: rounding gives them not quite equal work.

    The interval is that of the two ratios to the common baseline, combined as independent.
    """
    work = {r["network"]: r["macs"] for r in table}
    a, b = rows[slow]["ratio"], rows[fast]["ratio"]
    value = a.known() / b.known() * work[fast] / work[slow]
    relative = float(np.hypot(half_width(a) / a.known(), half_width(b) / b.known()))
    return measured(value, "x", spread=(value * (1 - relative), value * (1 + relative)), n=a.n)


def spearman(table: list[dict[str, Any]], by: str) -> float:
    """Rank correlation of a count with latency over all networks."""
    from scipy import stats

    found: Any = stats.spearmanr([r[by] for r in table], [r["latency_s"] for r in table])
    return float(found.statistic)


def bootstrap_gain(table: list[dict[str, Any]], draws: int = 400) -> Figure:
    """Spearman with activations minus Spearman with MACs, its 95 % interval over the networks."""
    rng = np.random.default_rng(0)
    value = spearman(table, "activations") - spearman(table, "macs")
    gains: list[float] = []
    while len(gains) < draws:
        picked = [table[i] for i in rng.integers(0, len(table), len(table))]
        # A draw of too few distinct networks has no ranks to correlate.
        if len({r["network"] for r in picked}) >= 4:
            gains.append(spearman(picked, "activations") - spearman(picked, "macs"))
    low, high = (float(q) for q in np.nanquantile(gains, [0.025, 0.975]))
    return measured(value, "", spread=(low, high), n=len(table))
