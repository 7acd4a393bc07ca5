"""Claim card of deep stacks made broad, "Make Deep Networks Shallow Again" (arXiv:2309.08414)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, measured
from paredown.nn.broad import ParallelResidual, ResidualConv, parallelise, truncation_error
from paredown.nn.conv import classifier
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _task
from paredown.papers.cards._task import pool
from paredown.papers.timing import side_by_side
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

Layout = Literal["sequential", "parallel"]
LAYOUTS: tuple[Layout, ...] = ("sequential", "parallel")
SIDE, NOISE, BATCH = 12, 0.35, 24
TIMED_CHANNELS, TIMED_SIDE = 32, 14
# Depths, filters, kernels.
GRIDS: dict[Scale, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "quick": ((2, 4, 8), (8, 16), (3,)),
    "full": ((2, 4, 8, 16), (8, 16, 32), (3, 5)),
}
EPOCHS: dict[Scale, int] = {"quick": 15, "full": 40}


@dataclass(frozen=True)
class Shape:
    """One configuration of the grid."""

    depth: int
    filters: int
    kernel: int


def shapes(scale: Scale) -> list[Shape]:
    """All configurations of a scale."""
    depths, filters, kernels = GRIDS[scale]
    return [Shape(d, f, k) for d in depths for f in filters for k in kernels]


def network(shape: Shape, layout: Layout) -> nn.Sequential:
    """A stem at stride 2, the residual layers in sequence or as one broad layer, a classifier."""
    layers = [ResidualConv(shape.filters, shape.kernel) for _ in range(shape.depth)]
    stem = nn.Conv2d(1, shape.filters, 3, 2, 1)
    return nn.Sequential(stem, stacked(layers, layout), classifier(shape.filters, 10))


def stacked(layers: Sequence[ResidualConv], layout: Layout) -> nn.Module:
    """The layers in sequence, or merged into one broad convolution of the same parameters."""
    if layout == "sequential":
        return nn.Sequential(*layers)
    parallel = parallelise(layers)[0]
    assert isinstance(parallel, ParallelResidual)
    return parallel.fuse()


def scans(part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy scans ``(n, 1, 12, 12)`` and their labels; the noise is fixed by ``seed``."""
    images, labels = digits.split(part, SIDE)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + NOISE * noise, labels


def batches() -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """One epoch; noise and order are drawn anew from torch's global generator."""
    images, labels = scans("train", int(torch.randint(2**31 - 1, ())))
    for pick in torch.randperm(len(images)).split(BATCH):
        yield (images[pick],), labels[pick]


def trained(shape: Shape, layout: Layout, seed: int, epochs: int) -> dict[str, float]:
    """Held-out loss and accuracy after training from scratch on one thread, and what was dropped.

    "dropped" is the truncation error of the trained stack (0 for the parallel layout).
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = network(shape, layout)
    fit(model, [Phase(batches, epochs)], rate=4e-3, seed=seed, loss=F.cross_entropy)
    images, labels = scans("held-out", 7)
    with torch.inference_mode():
        out = model(images)
        stack = model[1]
        dropped = 0.0
        if isinstance(stack, nn.Sequential):
            layers = [m for m in stack if isinstance(m, ResidualConv)]
            dropped = truncation_error(layers, model[0](images))
        return {
            "loss": float(F.cross_entropy(out, labels)),
            "accuracy": float((out.argmax(1) == labels).float().mean()),
            "dropped": dropped,
        }


Found = dict[tuple[Shape, str, int], dict[str, float]]


def all_trained(scale: Scale, seeds: Sequence[int], progress: Progress) -> Found:
    """Every configuration in both layouts for every seed, in two worker processes."""
    with pool(2) as workers:
        jobs = {
            (shape, layout, seed): workers.submit(trained, shape, layout, seed, EPOCHS[scale])
            for shape in shapes(scale)
            for layout in LAYOUTS
            for seed in seeds
        }
        found: Found = {}
        for key, job in jobs.items():
            found[key] = job.result()
            shape, layout, seed = key
            progress(f"{shape}, {layout}, seed {seed}: loss {found[key]['loss']:.3f}")
        return found


def stacks(depth: int) -> list[tuple[str, Callable[[], Any]]]:
    """Both layouts of one stack at batch 1 (in the timing child), the sequential one first."""
    layers = [ResidualConv(TIMED_CHANNELS) for _ in range(depth)]
    x = torch.randn(1, TIMED_CHANNELS, TIMED_SIDE, TIMED_SIDE)
    made = {layout: stacked(layers, layout).eval() for layout in LAYOUTS}
    return [(layout, lambda m=m: m(x)) for layout, m in made.items()]


def median_difference(found: Found, seeds: Sequence[int]) -> Figure:
    """Median over configurations of the losses' relative difference, with its 95 % interval.

    Losses are means over seeds; the interval is a bootstrap over configurations and seeds.
    """
    made = list(dict.fromkeys(shape for shape, _, _ in found))
    losses = np.array(
        [[[found[s, k, seed]["loss"] for seed in seeds] for k in LAYOUTS] for s in made]
    )

    def median(values: np.ndarray) -> float:
        one, other = values.mean(2).T
        return float(np.median(np.abs(other / one - 1)))

    rng = np.random.default_rng(0)
    draws: list[float] = []
    for _ in range(500):
        pick = losses[rng.integers(0, len(made), len(made))]
        draws.append(median(pick[:, :, rng.integers(0, len(seeds), len(seeds))]))
    value = median(losses)
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    return measured(value, "", spread=(min(low, value), max(high, value)), n=len(made))


class ShallowAgainCard(Card):
    """Both layouts trained from scratch over a grid, and timed."""

    key = "shallow-again"
    claim = (
        "a stack of residual layers and one broad parallel layer of the same parameters reach "
        "similar losses, and the broad one is faster"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "median_loss_difference": 0.10,
        "accuracy_difference": -0.01,
        "time_ratio": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy 12 x 12 scans; layers of depth 4 and more timed in eager fp32 on 2 threads."""
        t = self.thresholds
        quick = scale == "quick"
        seeds = list(range(2 if quick else 3))
        depths = [d for d in GRIDS[scale][0] if d >= 4]
        ratios: dict[int, Figure] = {}
        a_a: dict[int, Figure] = {}
        for depth in depths:
            progress(f"timing {depth} layers")
            seconds = 4.0 if quick else 20.0
            rows = side_by_side(stacks, depth, seconds=seconds, threads=2, limit_s=200)
            ratios[depth], a_a[depth] = rows["parallel"]["ratio"], rows["a/a"]["ratio"]
        found = all_trained(scale, seeds, progress)
        apart = median_difference(found, seeds)
        gaps = [
            found[s, "parallel", seed]["accuracy"] - found[s, "sequential", seed]["accuracy"]
            for s in shapes(scale)
            for seed in seeds
        ]
        checks = [
            Check(
                "median difference of held-out losses",
                apart.known(),
                "<=",
                t["median_loss_difference"],
                half_width(apart),
            ),
            _task.mean_check(
                "accuracy, parallel minus sequential", gaps, ">=", t["accuracy_difference"]
            ),
            *(
                Check(
                    f"time of {depth} layers, parallel over sequential",
                    ratio.known(),
                    "<=",
                    t["time_ratio"],
                    half_width(ratio),
                    "x",
                )
                for depth, ratio in ratios.items()
            ),
        ]
        figures: dict[str, Figure] = {
            "median difference of held-out losses": apart,
            **{f"time of {d} layers, parallel over sequential": f for d, f in ratios.items()},
            **{f"a/a ratio, {d} layers": f for d, f in a_a.items()},
        }
        for layout in LAYOUTS:
            mine = [v for (_, k, _), v in found.items() if k == layout]
            for what in ("loss", "accuracy"):
                figures[f"{what}, {layout}"] = mean_figure([v[what] for v in mine], "")
        dropped = [v["dropped"] for (_, k, _), v in found.items() if k == "sequential"]
        figures["terms dropped of a trained stack"] = mean_figure(dropped, "")
        return Experiment(figures, checks, seeds, {"configurations": table(found)})


def table(found: Found) -> list[dict[str, Any]]:
    """One row for each configuration and seed, with its overdetermination ratio Q = K M / P."""
    rows: list[dict[str, Any]] = []
    for (shape, layout, seed), values in found.items():
        # Both layouts have the same.
        params = sum(p.numel() for p in network(shape, "sequential").parameters())
        rows.append(
            {
                "depth": shape.depth,
                "filters": shape.filters,
                "kernel": shape.kernel,
                "layout": layout,
                "seed": seed,
                "params": params,
                "Q": round(digits.TRAIN * digits.CLASSES / params, 3),
                **{k: round(v, 4) for k, v in values.items()},
            }
        )
    return rows
