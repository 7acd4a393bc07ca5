"""Claim card of the hourglass MLP (arXiv:2510.01796)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.figure import Figure, counted
from paredown.nn.hourglass import HourglassMlp, Lift, trained_params
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
from paredown.workloads import digits

PIXELS = 64
NOISE = 0.6
TASKS = ("denoise", "super-resolve")
BUDGETS = (32_768, 65_536, 131_072)
# Depths, and widths of the hourglass's skip.
GRIDS: dict[Scale, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "quick": ((1, 3), (128, 256)),
    "full": ((1, 2, 4, 6), (128, 256, 512)),
}


@dataclass(frozen=True)
class Shape:
    """One network: its skip's width, the block's hidden width, its depth and lift."""

    width: int
    hidden: int
    depth: int
    lift: Lift

    @property
    def params(self) -> int:
        """Trained parameters."""
        return trained_params(PIXELS, PIXELS, self.width, self.hidden, self.depth, lift=self.lift)


def shapes(family: str, budget: int, scale: Scale = "full") -> list[Shape]:
    """All shapes of the grid that spend a budget of trained parameters to within one hidden unit.

    Conventional ones have the skip at the pixels and wider hidden layers, hourglass ones a wider
    skip and narrower hidden layers.
    """
    depths, wide = GRIDS[scale]
    widths = (PIXELS,) if family == "conventional" else wide
    lift: Lift = "identity" if family == "conventional" else "frozen"
    found: list[Shape] = []
    for width in widths:
        for depth in depths:
            hidden = (budget - width * PIXELS) // (2 * width * depth)
            if hidden >= 4 and (hidden > width) == (family == "conventional"):
                found.append(Shape(width, hidden, depth, lift))
    return found


def pairs(task: str, part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Degraded and clean scans ``(n, 64)`` of a part: under noise, or from half the resolution."""
    clean, _ = digits.split(part, 8)
    if task == "denoise":
        generator = torch.Generator().manual_seed(seed)
        given = clean + NOISE * torch.randn(clean.shape, generator=generator)
    else:
        small = F.avg_pool2d(clean, 2)
        given = F.interpolate(small, size=(8, 8), mode="bicubic", align_corners=False)
    return given.flatten(1), clean.flatten(1)


def psnr(model: HourglassMlp, task: str, part: str) -> float:
    """Decibels over all pixels of a part; the scans span 2."""
    given, clean = pairs(task, part, 7)
    with torch.inference_mode():
        error = F.mse_loss(model(given), clean)
    return float(10 * torch.log10(4 / error))


def trained(shape: Shape, task: str, seed: int, steps: int) -> tuple[float, float]:
    """Validation and held-out PSNR after Adam with a cosine rate, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = HourglassMlp(
        PIXELS, PIXELS, shape.width, shape.hidden, shape.depth, lift=shape.lift, seed=seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for given, clean in _batches(task, seed, steps):
        F.mse_loss(model(given), clean).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return psnr(model, task, "validation"), psnr(model, task, "held-out")


def _batches(task: str, seed: int, steps: int, batch: int = 96) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches; the noise is new in every epoch."""
    made = 0
    epoch = 0
    while made < steps:
        given, clean = pairs(task, "train", 1000 * (seed + 1) + epoch)
        order = torch.randperm(len(clean))
        for pick in order.split(batch)[: steps - made]:
            yield given[pick], clean[pick]
            made += 1
        epoch += 1


@dataclass
class Best:
    """The shape that is best on validation scans, and its held-out PSNR."""

    shape: Shape
    held_out: float


def fronts(
    seeds: Sequence[int], scale: Scale, progress: Progress
) -> dict[tuple[str, int, str, int], Best]:
    """For every (family, budget, task, seed) its best shape, by validation PSNR."""
    families = ("conventional", "hourglass")
    steps = 200 if scale == "quick" else 2000
    with pool(2) as workers:
        jobs = {
            (family, budget, task, seed, shape): workers.submit(trained, shape, task, seed, steps)
            for seed in seeds
            for task in TASKS
            for budget in BUDGETS
            for family in families
            for shape in shapes(family, budget, scale)
        }
        found: dict[tuple[str, int, str, int], tuple[float, Best]] = {}
        for (family, budget, task, seed, shape), job in jobs.items():
            key = (family, budget, task, seed)
            validation, held_out = job.result()
            if key not in found or validation > found[key][0]:
                found[key] = (validation, Best(shape, held_out))
        for key, (_, best) in found.items():
            s = best.shape
            told = f"{s.width} wide, {s.hidden} hidden, {s.depth} deep"
            progress(f"{', '.join(map(str, key))}: {best.held_out:.2f} dB, {told}")
        best_of = {key: best for key, (_, best) in found.items()}
        # The same hourglass with its lift trained, at the largest budget's best shapes.
        again = {
            (task, seed): workers.submit(
                trained,
                _trained_lift(best_of["hourglass", BUDGETS[-1], task, seed].shape),
                task,
                seed,
                steps,
            )
            for task in TASKS
            for seed in seeds
        }
        for (task, seed), job in again.items():
            shape = _trained_lift(best_of["hourglass", BUDGETS[-1], task, seed].shape)
            best_of["trained lift", BUDGETS[-1], task, seed] = Best(shape, job.result()[1])
    return best_of


def _trained_lift(shape: Shape) -> Shape:
    return Shape(shape.width, shape.hidden, shape.depth, "trained")


class HourglassCard(Card):
    """Best PSNR of both families at three budgets of trained parameters, on two tasks."""

    key = "hourglass-mlp"
    claim = (
        "residual MLPs with a wide skip and narrow hidden layers are better than conventional ones "
        "at every budget of parameters, and their lift need not be trained"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "hourglass_minus_conventional_db": 0.0,
        "frozen_minus_trained_db": -0.1,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Denoising and 2x super-resolution of 8 x 8 scans, equal steps, by task and seed."""
        t = self.thresholds
        seeds = list(range(2 if scale == "quick" else 6))
        best = fronts(seeds, scale, progress)
        cases = [(task, seed) for task in TASKS for seed in seeds]
        checks: list[Check] = []
        figures: dict[str, Figure] = {}

        def compare(name: str, a: str, b: str, budget: int, threshold: float) -> None:
            gaps = [
                best[a, budget, *case].held_out - best[b, budget, *case].held_out for case in cases
            ]
            mean, half = mean_and_power(gaps)
            checks.append(Check(name, mean, ">=", threshold, half, "dB"))

        for budget in BUDGETS:
            compare(
                f"PSNR at {budget:,} parameters, hourglass minus conventional",
                "hourglass",
                "conventional",
                budget,
                t["hourglass_minus_conventional_db"],
            )
            for family in ("conventional", "hourglass"):
                for task in TASKS:
                    values = [best[family, budget, task, s].held_out for s in seeds]
                    figures[f"PSNR, {task}, {family}, {budget:,}"] = mean_figure(values, "dB")
        compare(
            "PSNR, frozen lift minus trained",
            "hourglass",
            "trained lift",
            BUDGETS[-1],
            t["frozen_minus_trained_db"],
        )
        chosen = best["hourglass", BUDGETS[-1], TASKS[0], seeds[0]].shape
        # Adam keeps two float32 per trained parameter.
        for lift in ("frozen", "trained"):
            shape = Shape(chosen.width, chosen.hidden, chosen.depth, lift)
            figures[f"optimizer state, {lift} lift"] = counted(8 * shape.params, "B")
        table = [
            {
                "family": family,
                "budget": budget,
                "task": task,
                "seed": seed,
                "width": b.shape.width,
                "hidden": b.shape.hidden,
                "depth": b.shape.depth,
                "params": b.shape.params,
                "psnr_db": float(np.round(b.held_out, 3)),
            }
            for (family, budget, task, seed), b in best.items()
        ]
        return Experiment(figures, checks, seeds, {"best shapes": table})
