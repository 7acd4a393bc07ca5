"""Claim card of micro-batch training (arXiv:1903.10520)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from paredown.figure import Figure, counted
from paredown.nn import BasicBlock, ConvNormAct
from paredown.nn.conv import classifier, he_init
from paredown.nn.norm import replace_norms
from paredown.nn.standardised import BatchChannelNorm2d, standardise
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_figure
from paredown.papers.cards import _scans, _task
from paredown.papers.cards.finetuning import saved_bytes

LARGE = 24


def small(name: str) -> nn.Module:
    """A small residual network with the norms that a name as "BCN+WS, batch 2" begins with."""
    kind = name.partition(",")[0]
    model: nn.Module = nn.Sequential(
        ConvNormAct(1, 16, 3, stride=2),
        BasicBlock(16, 32, stride=2),
        classifier(32, 10),
    )
    he_init(model)
    if kind.startswith("GN"):
        replace_norms(model, nn.BatchNorm2d, lambda n: nn.GroupNorm(8, n.num_features))
    if kind.startswith("BCN"):
        replace_norms(model, nn.BatchNorm2d, _batch_channel)
    return standardise(model) if kind.endswith("WS") else model


def _batch_channel(norm: Any) -> nn.Module:
    """Eight groups, as the small group norm has; estimates as fast as the batch norm's own."""
    return BatchChannelNorm2d(norm.num_features, 8, speed=0.1)


def plans(epochs: int) -> dict[str, _scans.Plan]:
    """Equal epochs for all; the rate falls with the root of the batch, as Adam's noise asks."""
    pairs = [("BN", LARGE), ("BN", 2), ("GN+WS", 2), ("BCN+WS", 2), ("BN", 1), ("BCN+WS", 1)]
    return {
        f"{kind}, batch {batch}": _scans.Plan(epochs, batch, rate=6e-3 * (batch / LARGE) ** 0.5)
        for kind, batch in pairs
    }


class WsBcnCard(Card):
    """Norms at batches of 1 and 2 against batch norm at 24, equal epochs, paired by seed."""

    key = "ws-bcn"
    claim = (
        "with one or two images per step, weight standardisation with group norm or batch-channel "
        "norm matches or beats batch norm trained with large batches, where batch norm degrades"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "micro_minus_large": -0.005,
        "batch_norm_loss": 0.005,
        "saved_bytes_share": 0.5,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy digits; bytes kept for the backward pass are counted on the same network."""
        t = self.thresholds
        quick = scale == "quick"
        seeds = list(range(3 if quick else 5))
        found = _scans.accuracies(small, plans(3 if quick else 20), seeds, progress)
        large = found[f"BN, batch {LARGE}"]
        model = small("BCN+WS")
        one, many = (
            saved_bytes(lambda b=b: model(torch.randn(b, 1, 16, 16)), model) for b in (1, LARGE)
        )
        # What does not grow with the batch: standardised filters, estimates.
        fixed = (LARGE * one - many) / (LARGE - 1)
        share = one / many
        checks = [
            _task.not_worse(
                f"accuracy, {name} minus BN, batch {LARGE}",
                found[name],
                large,
                t["micro_minus_large"],
            )
            for name in ("GN+WS, batch 2", "BCN+WS, batch 2", "BCN+WS, batch 1")
        ]
        checks += [
            _task.not_worse(
                f"accuracy, BN, batch {LARGE} minus BN, batch {batch}",
                large,
                found[f"BN, batch {batch}"],
                t["batch_norm_loss"],
            )
            for batch in (2, 1)
        ]
        checks.append(
            Check(
                f"bytes kept for the backward pass, batch 1 over batch {LARGE}",
                share,
                "<=",
                t["saved_bytes_share"],
                unit="x",
            )
        )
        figures: dict[str, Figure] = {
            **{f"accuracy, {n}": mean_figure(a, "") for n, a in found.items()},
            "bytes kept, batch 1": counted(one, "B"),
            f"bytes kept, batch {LARGE}": counted(many, "B"),
            "bytes kept at any batch": counted(fixed, "B"),
        }
        return Experiment(figures, checks, seeds)
