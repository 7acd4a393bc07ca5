"""Claim card of convolutions built factored, for wave simulators (arXiv:2304.04964)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, counted
from paredown.nn.factored_conv import FactoredConv2d
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)
from paredown.papers.cards._task import pool
from paredown.papers.cards._waves import fields, relative_error
from paredown.papers.cards.finetuning import saved_bytes
from paredown.papers.cards.networks import graph_of
from paredown.papers.timing import side_by_side
from paredown.workloads.fit import Phase, fit

KERNEL, CHANNELS, BATCH = 5, (3, 16, 16, 16, 1), 16
RANKS = (4, 8, 16)
FORMS = ("dense", *(f"rank {r}" for r in RANKS))


@dataclass(frozen=True)
class Plan:
    """How much data of which size, and how long."""

    side: int
    train: int
    held_out: int
    epochs: int


PLANS: dict[Scale, Plan] = {"quick": Plan(24, 240, 160, 20), "full": Plan(32, 400, 200, 100)}


def layer(inputs: int, outputs: int, rank: int | None) -> nn.Module:
    """A 5 x 5 convolution, factored through ``rank`` channels where that has fewer weights."""
    if rank is not None and rank * (inputs + outputs) < KERNEL * inputs * outputs:
        return FactoredConv2d(inputs, outputs, KERNEL, rank)
    return nn.Conv2d(inputs, outputs, KERNEL, padding=KERNEL // 2)


def network(form: str) -> nn.Sequential:
    """Four convolutions with ReLU between, all "dense" or of one "rank R"."""
    rank = None if form == "dense" else int(form.removeprefix("rank "))
    model = nn.Sequential()
    for i, (inputs, outputs) in enumerate(pairwise(CHANNELS)):
        if i:
            model.append(nn.ReLU())
        model.append(layer(inputs, outputs, rank))
    return model


def params(form: str) -> int:
    """Trained parameters of a form."""
    return sum(p.numel() for p in network(form).parameters())


def trained(form: str, seed: int, plan: Plan) -> dict[str, float]:
    """Relative L2 errors on training, validation and held-out fields, on one thread.

    The network adds what it predicts to the newest snapshot.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Step(network(form))
    inputs, targets = fields(plan.train, plan.side, 1)

    def batches() -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for pick in torch.randperm(len(inputs)).split(BATCH):
            yield (inputs[pick],), targets[pick]

    fit(model, [Phase(batches, plan.epochs)], rate=4e-3, seed=seed, loss=F.mse_loss)
    parts = {"train": (inputs, targets)}
    for part, data_seed in (("validation", 2), ("held-out", 3)):
        parts[part] = fields(plan.held_out, plan.side, data_seed)
    with torch.inference_mode():
        return {part: relative_error(model(x), y) for part, (x, y) in parts.items()}


class Step(nn.Module):
    """The newest snapshot plus what a network makes of all channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, side, side)`` to ``(batch, 1, side, side)``."""
        return x[:, 1:2] + self.network(x)


Found = dict[tuple[str, int], dict[str, float]]


def all_trained(plan: Plan, seeds: Sequence[int], progress: Progress) -> Found:
    """Every form for every seed, in two worker processes."""
    with pool(2) as workers:
        jobs = {(f, s): workers.submit(trained, f, s, plan) for s in seeds for f in FORMS}
        found: Found = {}
        for (form, seed), job in jobs.items():
            found[form, seed] = job.result()
            progress(f"{form}, seed {seed}: {found[form, seed]['held-out']:.4f}")
        return found


def runs(side: int) -> list[tuple[str, Callable[[], Any]]]:
    """All forms at batch 1 (in the timing child), the dense one first."""
    x = torch.randn(1, CHANNELS[0], side, side)
    made = {form: network(form).eval() for form in FORMS}
    return [(form, lambda m=m: m(x)) for form, m in made.items()]


def chosen(found: Found, seeds: Sequence[int], share: float) -> str:
    """The form of at most ``share`` of the dense parameters that is best on validation fields."""
    small = [f for f in FORMS if f != "dense" and params(f) <= share * params("dense")]
    return min(small, key=lambda f: float(np.mean([found[f, s]["validation"] for s in seeds])))


class AprioriConvCard(Card):
    """Dense against factored from the start, at three ranks, on the wave equation."""

    key = "apriori-conv"
    claim = (
        "convolutions built from one-way filters are as accurate as full ones on the 2-D wave "
        "equation with fewer trained parameters"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "params_share": 0.5,
        "error_ratio": 1.05,
        "gap_difference": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Equal epochs; the rank is picked on validation fields, judged on held-out ones."""
        t = self.thresholds
        quick = scale == "quick"
        plan = PLANS[scale]
        seeds = list(range(2 if quick else 4))
        progress("timing networks")
        seconds = 4.0 if quick else 20.0
        rows = side_by_side(runs, plan.side, seconds=seconds, threads=2, limit_s=200)
        found = all_trained(plan, seeds, progress)
        best = chosen(found, seeds, t["params_share"])

        def paired(value: Callable[[dict[str, float], dict[str, float]], float]) -> list[float]:
            return [value(found[best, s], found["dense", s]) for s in seeds]

        ratio, ratio_half = mean_and_power(paired(lambda a, b: a["held-out"] / b["held-out"]))
        gap, gap_half = mean_and_power(
            paired(lambda a, b: (a["held-out"] - a["train"]) - (b["held-out"] - b["train"]))
        )
        checks = [
            Check(
                f"parameters, {best} over dense",
                params(best) / params("dense"),
                "<=",
                t["params_share"],
                unit="x",
            ),
            Check(
                f"held-out error, {best} over dense",
                ratio,
                "<=",
                t["error_ratio"],
                ratio_half,
                "x",
            ),
            Check(
                f"held-out minus training error, {best} minus dense",
                gap,
                "<=",
                t["gap_difference"],
                gap_half,
            ),
        ]
        x = torch.randn(BATCH, CHANNELS[0], plan.side, plan.side)
        figures: dict[str, Figure] = {"a/a ratio": rows["a/a"]["ratio"]}
        for form in FORMS:
            model = network(form)
            figures |= {
                f"held-out error, {form}": mean_figure(
                    [found[form, s]["held-out"] for s in seeds], ""
                ),
                f"parameters, {form}": counted(params(form), ""),
                f"MACs, {form}": counted(
                    graph_of(model.eval(), 1, CHANNELS[0], plan.side, plan.side).macs, ""
                ),
                f"bytes that training keeps, {form}": counted(
                    saved_bytes(lambda m=model: m(x), model), "B"
                ),
            }
            if form != "dense":
                figures[f"time, {form} over dense"] = rows[form]["ratio"]
        table = [
            {"form": form, "seed": seed, **{k: round(v, 5) for k, v in errors.items()}}
            for (form, seed), errors in found.items()
        ]
        return Experiment(figures, checks, seeds, {"errors": table})
