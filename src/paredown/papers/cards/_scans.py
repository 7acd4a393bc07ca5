"""A cheaper task than `_task`: single noisy scans, in place or moved about on a larger canvas.

Small networks learn it in a few hundred steps, so cards can afford many of them, and tiny batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.papers.card import Progress
from paredown.papers.cards._task import pool
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

JUDGE_SEED = 7
COPIES = 2


@dataclass(frozen=True)
class Plan:
    """How long a network trains, and on what: scans of ``size`` on a ``canvas``, under noise.

    ``moved`` puts every scan at a random place, else all are centred.
    """

    epochs: int
    batch: int = 24
    rate: float = 4e-3
    size: int = 12
    canvas: int = 16
    noise: float = 0.35
    moved: bool = False


def placed(ink: Tensor, plan: Plan, generator: torch.Generator) -> Tensor:
    """``(n, 1, size, size)`` scans on their canvas, with white noise."""
    room = plan.canvas - plan.size
    n = len(ink)
    if plan.moved:
        corners = torch.randint(0, room + 1, (n, 2), generator=generator)
    else:
        corners = torch.full((n, 2), room // 2)
    out = torch.full((n, 1, plan.canvas, plan.canvas), -1.0)
    for image, scan, (top, left) in zip(out, ink, corners.tolist(), strict=True):
        image[:, top : top + plan.size, left : left + plan.size] = scan
    return out + plan.noise * torch.randn(out.shape, generator=generator)


class Scans:
    """Training batches, noise and places drawn anew each epoch from torch's global generator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ink, self.labels = digits.split("train", plan.size)

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """One epoch; a last short batch is left out."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        order = torch.randperm(len(self.ink), generator=generator)
        images = placed(self.ink[order], self.plan, generator)
        for start in range(0, len(order) - self.plan.batch + 1, self.plan.batch):
            stop = start + self.plan.batch
            yield (images[start:stop],), self.labels[order[start:stop]]


def judge(plan: Plan) -> digits.Accuracy:
    """Held-out accuracy on two noisy copies of each of 917 scans."""
    ink, labels = digits.split("held-out", plan.size)
    generator = torch.Generator().manual_seed(JUDGE_SEED)
    images = torch.cat([placed(ink, plan, generator) for _ in range(COPIES)])
    return digits.Accuracy(images, labels.repeat(COPIES), batch=128)


Build = Callable[[str], nn.Module]


def accuracy(build: Build, name: str, seed: int, plan: Plan) -> float:
    """Held-out accuracy of ``build(name)`` initialised and trained with ``seed``, one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)
    fit(model, [Phase(Scans(plan), plan.epochs)], rate=plan.rate, seed=seed, loss=F.cross_entropy)
    return float(judge(plan)(model).mean())


def accuracies(
    build: Build, plans: Mapping[str, Plan], seeds: Sequence[int], progress: Progress
) -> dict[str, list[float]]:
    """Accuracy of every named network for every seed, in two worker processes."""
    jobs = [(name, seed) for seed in seeds for name in plans]
    found: dict[str, list[float]] = {name: [] for name in plans}
    with pool(2) as workers:
        runs = [workers.submit(accuracy, build, name, seed, plans[name]) for name, seed in jobs]
        for (name, seed), run in zip(jobs, runs, strict=True):
            found[name].append(run.result())
            progress(f"{name}, seed {seed}: {found[name][-1]:.3f}")
    return found
