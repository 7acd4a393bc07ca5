"""Claim card of mixed precision and its carbon footprint, Part I (arXiv:2409.07853)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, measured, predicted, unavailable
from paredown.measure.energy import Counter, available, carbon_g, why_unavailable
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)
from paredown.workloads import digits

PRECISIONS = ("fp32", "mixed")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """One setting of the grid."""

    precision: str
    batch: int
    neurons: int


@dataclass(frozen=True)
class Run:
    """One training run: its cost per epoch and held-out accuracy.

    ``cost`` is joules (idle included) where a counter can be read, else processor seconds.
    """

    cell: Cell
    repeat: int
    cost: float
    wall_s: float
    accuracy: float


def classifier(neurons: int) -> nn.Module:
    """A two-hidden-layer perceptron on 16 x 16 scans, as the paper's dense classifiers are."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(256, neurons),
        nn.ReLU(),
        nn.Linear(neurons, neurons),
        nn.ReLU(),
        nn.Linear(neurons, digits.CLASSES),
    )


def noisy(part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Scans at 16 x 16 under noise of deviation 0.9, so that a good classifier scores about 0.9."""
    images, labels = digits.split(part, 16)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + 0.9 * noise, labels


def train(cell: Cell, repeat: int, epochs: int, counters: Sequence[Counter] = ()) -> Run:
    """Train one classifier and account for the energy or processor time it took."""
    torch.manual_seed(repeat)
    model = classifier(cell.neurons)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images, labels = noisy("train", 1000 + repeat)
    images, labels = images.repeat(4, 1, 1, 1), labels.repeat(4)
    wall, cpu, joules = time.perf_counter(), time.process_time(), [c.read() for c in counters]
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for pick in order.split(cell.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=cell.precision == "mixed"):
                loss = F.cross_entropy(model(images[pick]).float(), labels[pick])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    spent = sum(c.since(j) for c, j in zip(counters, joules, strict=True))
    cost = (spent if counters else time.process_time() - cpu) / epochs
    wall = (time.perf_counter() - wall) / epochs
    judged, answers = noisy("held-out", 7)
    with torch.inference_mode():
        right = (model(judged).argmax(1) == answers).float().mean()
    return Run(cell, repeat, cost, wall, float(right))


class AmpCarbonCard(Card):
    """fp32 against bfloat16 autocast over a grid, in random order, by Welch's test and ANOVA."""

    key = "amp-carbon"
    claim = (
        "mixed precision draws a few watts less than the fp32 benchmark, and the difference is not "
        "statistically significant"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "repeats": 8,
        "accuracy_difference": 0.005,
        "relative_half_width": 0.1,
        "cells_where_mixed_differs_significantly": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Joules per epoch by counter, or processor seconds in their place where none can be read.

        The claim holds where no cell differs significantly after Holm's correction although a
        difference of a tenth would have been seen, accuracy being equal within half a point; the
        direction and size of each difference stand in the table.
        """
        t = self.thresholds
        repeats, epochs = (8, 2) if scale == "quick" else (20, 8)
        grid = [(64, 256), (256, 256), (256, 1024)]
        cells = [Cell(p, b, n) for b, n in grid for p in PRECISIONS]
        counters = available()
        what, unit = ("energy", "J") if counters else ("CPU time", "s")
        runs = self.runs(cells, repeats, epochs, counters, progress)
        table, p_values = compare(runs, grid)
        significant = holm(p_values)
        for row, yes in zip(table, significant, strict=True):
            row["verdict"] = "significant" if yes else "not significant"
            batch, neurons = row["batch"], row["neurons"]
            progress(
                f"batch {batch}, {neurons} neurons: mixed takes {row['ratio']:.2f}x the {what}, "
                f"p = {row['welch_p']:.2g}, {row['verdict']}"
            )
        gaps = paired_gaps(runs, grid)
        gap, power = mean_and_power(gaps)
        checks = [
            Check("repeats per cell", repeats, ">=", t["repeats"]),
            Check("|accuracy, mixed minus fp32|", abs(gap), "<=", t["accuracy_difference"], power),
            Check(
                "widest 95 % half-width of a cell's relative difference",
                max(row["ratio_half_width"] for row in table),
                "<=",
                t["relative_half_width"],
            ),
            Check(
                "cells where mixed differs significantly",
                sum(significant),
                "<=",
                t["cells_where_mixed_differs_significantly"],
            ),
        ]
        figures: dict[str, Figure] = {"accuracy, mixed minus fp32": mean_figure(gaps, "")}
        for cell in cells:
            name = f"{what} per epoch, {cell.precision}, batch {cell.batch}, {cell.neurons} neurons"
            figures[name] = mean_figure([r.cost for r in runs if r.cell == cell], unit)
        if counters:
            spent = sum(r.cost * epochs for r in runs)
            figures["carbon of all runs, world grid"] = predicted(carbon_g(spent) / 1000, "kg")
        else:
            figures["energy"] = unavailable("J", why_unavailable() or "no counter")
        figures["ANOVA over all cells, p"] = measured(anova(runs, cells), "", n=len(runs))
        return Experiment(figures, checks, list(range(repeats)), {"cells": table})

    def runs(
        self,
        cells: Sequence[Cell],
        repeats: int,
        epochs: int,
        counters: Sequence[Counter],
        progress: Progress,
    ) -> list[Run]:
        """Every cell ``repeats`` times, in random order, after one run of each to warm up.

        On one thread: threads that wait for each other would be counted as work.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for cell in cells:
                train(cell, 0, 1)
            jobs = [(c, r) for r in range(repeats) for c in cells]
            order = np.random.default_rng(0).permutation(len(jobs))
            done: list[Run] = []
            for i, j in enumerate(order):
                cell, repeat = jobs[j]
                done.append(train(cell, repeat, epochs, counters))
                if i % 12 == 11:
                    progress(f"run {i + 1} of {len(jobs)}")
        finally:
            torch.set_num_threads(threads)
        return done


def compare(
    runs: Sequence[Run], grid: Sequence[tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Per setting: means, ratio, Welch's test and effect size (Hedges' g) of cost per epoch."""
    table: list[dict[str, Any]] = []
    for batch, neurons in grid:
        plain, mixed = (
            np.asarray([r.cost for r in runs if r.cell == Cell(p, batch, neurons)])
            for p in PRECISIONS
        )
        statistic, p = welch(mixed, plain)
        table.append(
            {
                "batch": batch,
                "neurons": neurons,
                "fp32_cost": float(plain.mean()),
                "mixed_cost": float(mixed.mean()),
                "ratio": float(mixed.mean() / plain.mean()),
                "ratio_half_width": welch_half_width(mixed, plain) / float(plain.mean()),
                "welch_t": statistic,
                "welch_p": p,
                "hedges_g": hedges(mixed, plain),
                "n": len(plain),
            }
        )
    return table, [row["welch_p"] for row in table]


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Welch's t statistic of ``mean(a) - mean(b)`` and its two-sided p."""
    from scipy import stats

    found: Any = stats.ttest_ind(a, b, equal_var=False)
    return float(found.statistic), float(found.pvalue)


def welch_half_width(a: np.ndarray, b: np.ndarray) -> float:
    """Half the 95 % interval of ``mean(a) - mean(b)`` without assuming equal variances."""
    from scipy import stats

    found: Any = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


def hedges(a: np.ndarray, b: np.ndarray) -> float:
    """Standardised mean difference with the correction for small samples."""
    n = len(a) + len(b) - 2
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / n)
    return float((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * n - 1)))


def anova(runs: Sequence[Run], cells: Sequence[Cell]) -> float:
    """The p value of a one-way analysis of variance of cost over all cells."""
    from scipy import stats

    found: Any = stats.f_oneway(*([r.cost for r in runs if r.cell == c] for c in cells))
    return float(found.pvalue)


def holm(p_values: Sequence[float], level: float = SIGNIFICANT) -> list[bool]:
    """Which hypotheses fall at the level under Holm's step-down correction."""
    order = np.argsort(p_values)
    fallen = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        fallen[i] = True
    return fallen


def paired_gaps(runs: Sequence[Run], grid: Sequence[tuple[int, int]]) -> list[float]:
    """Accuracy of mixed minus fp32 for every setting and repeat (same seed and data)."""
    found = {(r.cell, r.repeat): r.accuracy for r in runs}
    repeats = sorted({r.repeat for r in runs})
    return [
        found[Cell("mixed", b, n), i] - found[Cell("fp32", b, n), i]
        for b, n in grid
        for i in repeats
    ]
