"""Pictures to restore: synthetic textures, under noise or made small; PSNR is the judge.

Stripes at random angles, checks, discs and smooth shades, laid over each other, grey in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.papers.cards._parts import Build
from paredown.workloads.fit import Loss, Phase, fit

SIGMA = 25 / 255
JUDGED = 48


@dataclass(frozen=True)
class Plan:
    """How long a network trains: steps of ``batch`` pictures of ``side`` pixels at this rate."""

    steps: int
    batch: int = 4
    side: int = 32
    rate: float = 4e-3


def textures(count: int, side: int, generator: torch.Generator) -> Tensor:
    """``(count, 1, side, side)`` pictures in 0..1."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    row, column = torch.meshgrid(
        torch.arange(float(side)), torch.arange(float(side)), indexing="ij"
    )
    picture = F.interpolate(uniform(0.2, 0.8, count, 1, 3, 3), (side, side), mode="bicubic")
    for _ in range(2):
        angle, period = uniform(0, math.pi, count, 1, 1, 1), uniform(3.5, 9, count, 1, 1, 1)
        phase = (angle.cos() * row + angle.sin() * column) / period + uniform(0, 1, count, 1, 1, 1)
        wave = torch.sin(2 * math.pi * phase)
        # Half of the layers are hard stripes.
        wave = torch.where(uniform(0, 1, count, 1, 1, 1) < 0.5, wave.sign(), wave)
        y, x = uniform(0, side, count, 1, 1, 1), uniform(0, side, count, 1, 1, 1)
        radius = uniform(side / 5, side / 2, count, 1, 1, 1)
        disc = ((row - y) ** 2 + (column - x) ** 2 < radius**2).float()
        picture = picture + disc * uniform(-0.3, 0.3, count, 1, 1, 1) * (1 + wave) / 2
        picture = picture + 0.15 * wave * (1 - disc)
    return picture.clamp(0, 1)


def noisy(clean: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of deviation 25 / 255 added."""
    return clean + SIGMA * torch.randn(clean.shape, generator=generator)


def halved(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Half the sides, by an antialiased bicubic filter."""
    return F.interpolate(clean, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)


Damage = Callable[[Tensor, torch.Generator], Tensor]


class Pictures:
    """One epoch of new damaged pictures and clean ones, seeded from torch's global generator."""

    def __init__(self, plan: Plan, damage: Damage) -> None:
        self.plan, self.damage = plan, damage

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches of damaged pictures and what they were."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.plan.steps):
            clean = textures(self.plan.batch, self.plan.side, generator)
            yield (self.damage(clean, generator),), clean


def psnr(model: nn.Module, plan: Plan, damage: Damage) -> float:
    """Mean PSNR in dB over 48 pictures of a fixed seed."""
    generator = torch.Generator().manual_seed(7)
    clean = textures(JUDGED, plan.side, generator)
    bad = damage(clean, generator)
    with torch.inference_mode():
        found = torch.cat([model(part) for part in bad.split(16)]).clamp(0, 1)
    error = (found - clean).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def restored(
    build: Build, name: str, seed: int, plan: Plan, damage: Damage, loss: Loss
) -> tuple[nn.Module, dict[str, float]]:
    """The trained network and its PSNR."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)
    fit(model, [Phase(Pictures(plan, damage), 1)], rate=plan.rate, seed=seed, loss=loss)
    return model, {"PSNR": psnr(model, plan, damage)}
