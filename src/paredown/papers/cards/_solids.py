"""Volumes to segment: tumours among look-alike tubes in an organ, and blobs under noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.nn.segment import dice_cross_entropy
from paredown.papers.cards._parts import Build
from paredown.workloads.fit import Phase, fit
from paredown.zoo.h_denseunet import volume_loss

SHAPE, BLOBS = (8, 32, 32), (16, 16, 16)
JUDGED = 24


@dataclass(frozen=True)
class Plan:
    """How long a network trains: steps of ``batch`` volumes at this rate."""

    steps: int
    batch: int
    rate: float = 6e-3


Make = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def axes(shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """The coordinates of every voxel: three tensors of this shape."""
    return torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")


def organs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Volumes ``(count, 1, 8, 32, 32)`` and labels: paper 0, organ 1, tumour 2.

    An elliptic organ through all slices holds two balls, which are tumours, and two tubes along
    the depth as bright and as wide, which are not: one slice cannot tell them.
    """
    d, h, w = axes(SHAPE)

    def uniform(low: float, high: float) -> float:
        return float(torch.rand((), generator=generator)) * (high - low) + low

    images, labels = [], []
    for _ in range(count):
        inside = ((h - 16) / uniform(12, 15)) ** 2 + ((w - 16) / uniform(12, 15)) ** 2 < 1
        image, label = inside * 0.5, inside.long()
        # One in each quarter, so that none hides another.
        places = torch.randperm(4, generator=generator).tolist()
        for i, place in enumerate(places):
            row = 11 + 10 * (place // 2) + uniform(-1, 1)
            column = 11 + 10 * (place % 2) + uniform(-1, 1)
            radius, square = uniform(2.5, 3.5), (h - row) ** 2 + (w - column) ** 2
            ball = i < 2
            depth = (d - uniform(2.5, 4.5)) ** 2 if ball else torch.zeros_like(d)
            there = square + depth < radius**2
            image = torch.where(there, 1.0, image)
            label = torch.where(there, 2 if ball else 1, label)
        images.append(image)
        labels.append(label)
    x = torch.stack(images)[:, None]
    return x + 0.15 * torch.randn(x.shape, generator=generator), torch.stack(labels)


def balls(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy cubes ``(count, 1, 16, 16, 16)`` with three balls each, and where they are."""
    at = torch.stack(axes(BLOBS))
    found = torch.zeros(count, 1, *BLOBS)
    for cube in found:
        for _ in range(3):
            centre = 3 + 10 * torch.rand(3, 1, 1, 1, generator=generator)
            radius = 2 + 1.5 * float(torch.rand((), generator=generator))
            cube[0][(at - centre).square().sum(0) < radius**2] = 1
    return found + 0.6 * torch.randn(found.shape, generator=generator), found


class Volumes:
    """One epoch of new volumes, seeded from torch's global generator."""

    def __init__(self, plan: Plan, make: Make) -> None:
        self.plan, self.make = plan, make

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches of volumes and what is in them."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.plan.steps):
            x, y = self.make(self.plan.batch, generator)
            yield (x,), y


def hard_dice(found: Tensor, wanted: Tensor) -> float:
    """Dice of two masks over all volumes together."""
    both = float((found & wanted).sum())
    return 2 * both / max(float(found.sum() + wanted.sum()), 1.0)


def tumours(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Dice of the tumours in 24 held-out volumes, end slices left out as in the loss."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)
    fit(model, [Phase(Volumes(plan, organs), 1)], rate=plan.rate, seed=seed, loss=volume_loss)
    x, y = organs(JUDGED, torch.Generator().manual_seed(7))
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in x.split(4)])
    return {"tumour dice": hard_dice(found[:, 1:-1] == 2, y[:, 1:-1] == 2)}


def blobs(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Dice of the balls in 24 held-out cubes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)
    batches = Volumes(plan, balls)
    fit(model, [Phase(batches, 1)], rate=plan.rate, seed=seed, loss=dice_cross_entropy)
    x, y = balls(JUDGED, torch.Generator().manual_seed(7))
    with torch.inference_mode():
        found = torch.cat([model(part) > 0 for part in x.split(4)])
    return {"dice": hard_dice(found, y > 0)}
