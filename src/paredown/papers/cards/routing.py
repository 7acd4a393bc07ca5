"""Claim card of token routing (DiT, Ma et al. 2023, arXiv:2308.03409), on digits of two scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, counted
from paredown.graph.capture import capture_run
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _task
from paredown.papers.cards._paired import Paired
from paredown.workload import Workload
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit
from paredown.zoo.token_routing import RoutedViT, loss

CANVAS, SOURCE, JUDGE_SEED = 24, 24, 17
SMALL, LARGE = (0.45, 0.55), (0.9, 1.0)
"""Shares of the canvas that a digit's box takes."""
BUDGET, WEIGHT = 0.75, 10.0
"""Mean share of the static work asked of the gates, and the weight of the distance to it."""
SUBJECTS: dict[str, dict[str, Any]] = {
    "static": {"routed": False},
    "routed": {},
    "narrow": {"routed": False, "widths": (24, 36)},
}
SIZES: dict[str, Any] = {
    "widths": (28, 40),
    "heads": (2, 4),
    "layers": 3,
    "reductions": (2, 1),
    "ratios": (2, 2),
}


@dataclass(frozen=True)
class Plan:
    """How long a network trains, at which rate, under which noise."""

    epochs: int
    batch: int = 24
    rate: float = 4e-3
    noise: float = 0.15


def network(name: str) -> RoutedViT:
    """One of the subjects, with linears of the usual size."""
    settings: dict[str, Any] = {**SIZES, **SUBJECTS[name]}
    model = RoutedViT(num_classes=10, in_channels=1, image_size=CANVAS, **settings)
    for m in model.modules():
        if isinstance(m, nn.Linear) and m.out_features > 3:
            nn.init.xavier_uniform_(m.weight)
    return model


class Falling:
    """The loss with a budget that falls from all of the work to `BUDGET` over half of the steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.step = steps, 0

    def __call__(self, out: Any, target: Tensor) -> Tensor:
        """A scalar; every call is a step."""
        left = max(0.0, 1 - 2 * self.step / self.steps)
        self.step += 1
        return loss(out, target, budget=BUDGET + (1 - BUDGET) * left, weight=WEIGHT)


def canvases(ink: Tensor, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scans ``(n, 1, s, s)`` small or large at random on noisy canvases, and which are large."""
    n = len(ink)

    def uniform(low: Tensor | float, high: Tensor | float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    large = torch.rand(n, generator=generator) < 0.5
    share = torch.where(large, uniform(*LARGE, n), uniform(*SMALL, n))
    # Small digits lie in one of four quarters: any place takes longer to learn than cards have.
    shift = (torch.randint(2, (n, 2), generator=generator) * 2 - 1) * (1 - share).unsqueeze(1)
    zero = torch.zeros(n)
    theta = torch.stack(
        [
            torch.stack([1 / share, zero, -shift[:, 0] / share], 1),
            torch.stack([zero, 1 / share, -shift[:, 1] / share], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, CANVAS, CANVAS], align_corners=False)
    placed = F.grid_sample(ink + 1, grid, mode="bilinear", align_corners=False) - 1
    return placed + noise * torch.randn(placed.shape, generator=generator), large


class Canvases:
    """Training batches, scales, places and noise drawn anew from torch's global generator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ink, self.labels = digits.split("train", SOURCE)

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """One epoch; a last short batch is left out."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        order = torch.randperm(len(self.ink), generator=generator)
        images, _ = canvases(self.ink[order], self.plan.noise, generator)
        for start in range(0, len(order) - self.plan.batch + 1, self.plan.batch):
            stop = start + self.plan.batch
            yield (images[start:stop],), self.labels[order[start:stop]]


def judged(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out canvases, their labels, and which digits are large."""
    ink, labels = digits.split("held-out", SOURCE)
    images, large = canvases(ink, plan.noise, torch.Generator().manual_seed(JUDGE_SEED))
    return images, labels, large


def scores(seed: int, plan: Plan) -> dict[str, float]:
    """Accuracy and mean work of every subject, and what the routed one's work follows (worker)."""
    torch.set_num_threads(1)
    images, labels, large = judged(plan)
    found: dict[str, float] = {}
    wrongness = torch.zeros(len(labels))
    for name in SUBJECTS:
        torch.manual_seed(seed)
        model = network(name)
        term = Falling(plan.epochs * (digits.TRAIN // plan.batch))
        fit(model, [Phase(Canvases(plan), plan.epochs)], rate=plan.rate, seed=seed, loss=term)
        with torch.inference_mode():
            logits = torch.cat([model(x) for x in images.split(128)])
            macs = torch.cat([model.macs(x) for x in images.split(128)])
        right = (logits.argmax(-1) == labels).float()
        found[name] = float(right.mean())
        found[f"{name}, small digits"] = float(right[~large].mean())
        found[f"{name}, large digits"] = float(right[large].mean())
        found[f"MACs, {name}"] = float(macs.mean())
        if name == "static":
            wrongness = F.cross_entropy(logits, labels, reduction="none")
        if name == "routed":
            found["work with scale"] = correlation(macs, large.double())
            found["work with difficulty"] = correlation(macs, wrongness.argsort().argsort())
            for p in (5, 50, 95):
                found[f"MACs, routed, p{p}"] = float(np.percentile(macs.numpy(), p))
            found |= exactness(model, images[:32])
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where one of both does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def exactness(model: RoutedViT, images: Tensor) -> dict[str, float]:
    """Largest relative difference of both executions, and of the MACs run from the formula's."""
    with torch.inference_mode():
        masked, gathered = (model.route(images, gathered=g)[0] for g in (False, True))
    formula = model.macs(images[:8]).tolist()
    runs = [capture_run(Workload(model, (x,)), (x,)).macs for x in images[:8].split(1)]
    return {
        "gathered off masked": float((gathered - masked).abs().max() / masked.abs().max()),
        "MACs off formula": max(abs(a - b) for a, b in zip(runs, formula, strict=True)),
    }


class TokenRoutingCard(Card):
    """A routed network against the static one of all paths, and a static one of equal work."""

    key = "dit-routing"
    claim = (
        "tokens that each choose their way through layers and scales under a budget reach at "
        "least the accuracy of the static network at 80 % of its work, and more than a static "
        "network of equal mean work"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "gathered_off_masked": 1e-5,
        "macs_off_formula": 0.0,
        "work_over_static": 0.8,
        "routed_minus_static": 0.0,
        "routed_minus_narrow": 0.0,
        "narrow_work_over_routed": 1.05,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Digits of a third of the canvas or nearly all of it, paired by seed."""
        quick = scale == "quick"
        seeds = list(range(4 if quick else 10))
        by = Paired.run(scores, seeds, Plan(12 if quick else 60), progress=progress)
        t = self.thresholds
        work = [a / b for a, b in zip(by["MACs, routed"], by["MACs, static"], strict=True)]
        narrow = [a / b for a, b in zip(by["MACs, narrow"], by["MACs, routed"], strict=True)]
        checks = [
            Check(
                "gathered off masked execution, relative",
                max(by["gathered off masked"]),
                "<=",
                t["gathered_off_masked"],
            ),
            Check("MACs off the formula", max(by["MACs off formula"]), "<=", t["macs_off_formula"]),
            Check("mean work over the static network's", max(work), "<=", t["work_over_static"]),
            _task.mean_check(
                "accuracy, routed minus static",
                by.less("routed", "static"),
                ">=",
                t["routed_minus_static"],
            ),
            _task.mean_check(
                "accuracy, routed minus narrow",
                by.less("routed", "narrow"),
                ">=",
                t["routed_minus_narrow"],
            ),
            # Both ways: the comparison is fair only where the work is equal.
            Check(
                "work of the narrow network over the routed one's, or its inverse",
                max(max(narrow), 1 / min(narrow)),
                "<=",
                t["narrow_work_over_routed"],
                unit="x",
            ),
        ]
        names = [n for n in by if n.partition(",")[0] in SUBJECTS]
        figures: dict[str, Figure] = {
            **by.figures("accuracy", names),
            **by.figures("correlation", ("work with scale", "work with difficulty")),
            "work over static": counted(sum(work) / len(work), "x"),
        }
        table = by.rows("network", "accuracy", names)
        macs = by.rows("network", "MACs", [n for n in by if n.startswith("MACs, ")])
        return Experiment(figures, checks, seeds, {"accuracy": table, "work": macs})
