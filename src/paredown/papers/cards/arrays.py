"""Claim card of DRACO: more channels per group on a row-stationary array."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from paredown import device
from paredown.cost.reuse import depthwise, sized, summary, widened
from paredown.cost.systolic import Layer, cost, layers
from paredown.figure import Figure, predicted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.workload import Workload

DEVICE, BATCH = "row-stationary-64", 16
SIDES = (16, 32, 64)
CHANNELS = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5,
          (1024, 2), (1024, 1))  # fmt: skip
"""MobileNetV1 (arXiv:1704.04861, table 1): output channels and stride of each separable block."""


def mobilenet_v1() -> nn.Sequential:
    """MobileNetV1 at width 1: convolutions and the classifier alone, as an array sees them."""
    steps: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False)]
    held = 32
    for width, stride in WIDTHS:
        steps.append(nn.Conv2d(held, held, 3, stride, 1, groups=held, bias=False))
        steps.append(nn.Conv2d(held, width, 1, bias=False))
        held = width
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(held, 1000))


class DracoCard(Card):
    """Utilisation and latency of MobileNetV1 by channels per group and size of the array.

    16-bit numbers, batch 16. Accuracy is not tested here: it needs the widened networks trained.
    """

    key = "draco"
    claim = (
        "MobileNetV1 with more data reuse uses a 64 x 64 row-stationary array 41.8% better on "
        "average and takes 42.6% less time (accuracy left out here)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "layers_changed_by_one_channel": 0,
        "utilisation_outside_0_to_1": 0,
        "depthwise_utilisation_that_falls": 0,
        "gain_in_utilisation_at_64": 0.4,
        "cut_of_latency_at_64": 0.3,
        "gain_at_16_over_gain_at_64": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Every size and number of channels: a few hundred layer costs."""
        t = self.thresholds
        plain = network()
        rows = [row(plain, side, channels) for side in SIDES for channels in CHANNELS]
        changed = sum(a != b for a, b in zip(plain, widened(plain, 1), strict=True))
        outside, falls = layer_faults(plain)
        gains = {s: best(rows, s) for s in SIDES}
        progress(", ".join(f"{s}: {g:+.1%}" for s, g in gains.items()))
        cut = -min(r["latency_change"] for r in rows if r["side"] == 64)
        checks = [
            Check("layers that one channel per group changes", changed, "<=",
                  t["layers_changed_by_one_channel"]),
            Check("layers with a utilisation outside of (0, 1]", outside, "<=",
                  t["utilisation_outside_0_to_1"]),
            Check("depthwise layers less used with more channels", falls, "<=",
                  t["depthwise_utilisation_that_falls"]),
            Check("best gain in mean utilisation at 64 x 64", gains[64], ">=",
                  t["gain_in_utilisation_at_64"]),
            Check("best cut of latency at 64 x 64", cut, ">=", t["cut_of_latency_at_64"]),
            Check("gain at 16 x 16 over that at 64 x 64", gains[16] / gains[64], "<=",
                  t["gain_at_16_over_gain_at_64"]),
        ]  # fmt: skip
        fast = min((r for r in rows if r["side"] == 64), key=lambda r: r["seconds"])
        figures: dict[str, Figure] = {
            "mean utilisation of MobileNetV1 at 64 x 64": predicted(rows_at(rows, 64, 1), "1"),
            "channels per group of the fastest at 64 x 64": predicted(fast["channels"], ""),
            "its MACs over the original's": predicted(fast["macs"], "1"),
            "its latency over the original's": predicted(1 + fast["latency_change"], "1"),
            "its energy over the original's": predicted(fast["energy"], "1"),
            "best cut of cycles alone at 64 x 64": predicted(
                -min(r["cycles_change"] for r in rows if r["side"] == 64), "1"
            ),
        }
        return Experiment(figures, checks, [0], {"sweep": rows})


def network() -> list[Layer]:
    """MobileNetV1's layers with 16-bit numbers, batch 16."""
    with torch.device("meta"):
        model = mobilenet_v1().to(torch.bfloat16).eval()
        image = torch.empty(BATCH, 3, 224, 224, dtype=torch.bfloat16)
    return layers(capture(Workload(model, (image,))))


def row(plain: list[Layer], side: int, channels: int) -> dict[str, Any]:
    """One size and number of channels against the original on the same array."""
    where = sized(device.load(DEVICE), side)
    before, after = summary(plain, where), summary(widened(plain, channels), where)
    return {
        "side": side,
        "channels": channels,
        "utilization": after.utilization,
        "gain": after.utilization / before.utilization - 1,
        "seconds": after.seconds,
        "latency_change": after.seconds / before.seconds - 1,
        "cycles_change": after.cycles / before.cycles - 1,
        "macs": after.macs / before.macs,
        "energy": after.energy / before.energy,
    }


def best(rows: list[dict[str, Any]], side: int) -> float:
    """The largest gain in utilisation of one array size."""
    return max(r["gain"] for r in rows if r["side"] == side)


def rows_at(rows: list[dict[str, Any]], side: int, channels: int) -> float:
    """Mean utilisation of one row."""
    return next(r["utilization"] for r in rows if (r["side"], r["channels"]) == (side, channels))


def layer_faults(plain: list[Layer]) -> tuple[int, int]:
    """Utilisations outside (0, 1], and depthwise layers whose utilisation ever falls."""
    outside = falls = 0
    for side in SIDES:
        where = sized(device.load(DEVICE), side)
        for i, layer in enumerate(plain):
            shares = [cost(widened(plain, c)[i], where).utilization for c in CHANNELS]
            outside += not all(0 < s <= 1 for s in shares)
            falls += depthwise(layer) and shares != sorted(shares)
    return outside, falls
