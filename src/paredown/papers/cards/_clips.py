"""Moving digits: clips of one scan that drifts; the label is where to, and which of two digits.

A single frame tells the digit but not the direction, so a network needs time for most of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.papers.cards._parts import Build
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

FRAMES, CANVAS, SIZE = 16, 20, 12
DIGITS, DIRECTIONS = (0, 1), ((0, 1), (0, -1), (1, 0), (-1, 0))
CLASSES = len(DIGITS) * len(DIRECTIONS)


@dataclass(frozen=True)
class Plan:
    """How long a network trains: steps of ``batch`` clips at this rate."""

    steps: int
    batch: int = 16
    rate: float = 4e-3
    noise: float = 0.8


def clips(part: str, count: int, generator: torch.Generator, noise: float) -> tuple[Tensor, Tensor]:
    """``(count, 1, 16, 20, 20)`` clips and their labels, under white noise.

    The scan starts anywhere from which it can drift by 8 pixels in 16 frames.
    """
    ink, labels = digits.split(part, SIZE)
    room = CANVAS - SIZE
    out = torch.full((count, 1, FRAMES, CANVAS, CANVAS), -1.0)
    answers = torch.empty(count, dtype=torch.int64)
    pools = [ink[labels == d] for d in DIGITS]
    for i in range(count):
        which, way = (int(torch.randint(n, (), generator=generator)) for n in (2, 4))
        scan = pools[which][int(torch.randint(len(pools[which]), (), generator=generator))]
        down, right = DIRECTIONS[way]
        across = int(torch.randint(room + 1, (), generator=generator))
        for t in range(FRAMES):
            along = t // 2 if down + right > 0 else room - t // 2
            top, left = (along, across) if down else (across, along)
            out[i, :, t, top : top + SIZE, left : left + SIZE] = scan
        answers[i] = which * len(DIRECTIONS) + way
    return out + noise * torch.randn(out.shape, generator=generator), answers


class Clips:
    """One epoch of new training clips, seeded from torch's global generator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches of clips and labels."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.plan.steps):
            x, y = clips("train", self.plan.batch, generator, self.plan.noise)
            yield (x,), y


JUDGED = 320


def accuracy(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Accuracy on 320 clips of held-out scans."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)
    fit(model, [Phase(Clips(plan), 1)], rate=plan.rate, seed=seed, loss=F.cross_entropy)
    held_out = clips("held-out", JUDGED, torch.Generator().manual_seed(7), plan.noise)
    return {"accuracy": float(digits.Accuracy(*held_out, batch=32)(model).mean())}
