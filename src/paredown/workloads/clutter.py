"""Digits in clutter: a scanned digit somewhere among pieces of others, under noise; ten classes.

Harder than plain digits, so that small networks score 0.80 to 0.95 and differences show. Rendered
from scikit-learn's scans: training scenes anew each epoch, judged scenes from fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.workload import TrainingData, Workload
from paredown.workloads.digits import CLASSES, Accuracy, Batch, split

__all__ = ["CLASSES", "Scenes", "render", "scenes", "workload"]

PIECES, NOISE = 7, 0.5
SEEDS = {"train": 11, "validation": 12, "held-out": 13}
SOURCE = 24


def render(
    ink: Tensor,
    size: int,
    generator: torch.Generator,
    *,
    noise: float = NOISE,
    pieces: int = PIECES,
) -> Tensor:
    """One scene per digit of ``ink`` ``(n, 1, s, s)`` (values -1..1): ``(n, 1, size, size)``.

    The digit is scaled to 0.5 to 0.8 of the scene, turned up to 20 degrees and placed at random;
    ``pieces`` fragments of other digits of the same batch lie around and across it, fainter; then
    contrast and white noise of deviation ``noise``.
    """
    n = len(ink)
    positive = (ink + 1) / 2

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def place(images: Tensor, share: Tensor, degrees: float, reach: float) -> Tensor:
        angle = uniform(-degrees, degrees, n) * math.pi / 180
        cos, sin = torch.cos(angle) / share, torch.sin(angle) / share
        # A shift in output coordinates; the digit stays inside when |shift| <= 1 - share.
        shift = uniform(-1, 1, n, 2) * (reach - share).clamp(min=0).unsqueeze(1)
        dx, dy = shift[:, 0], shift[:, 1]
        theta = torch.stack(
            [
                torch.stack([cos, -sin, -(cos * dx - sin * dy)], 1),
                torch.stack([sin, cos, -(sin * dx + cos * dy)], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", align_corners=False)

    scene = place(positive, uniform(0.5, 0.8, n), 20, 1.0)
    rows = torch.arange(size).reshape(1, 1, size, 1)
    columns = torch.arange(size).reshape(1, 1, 1, size)
    for _ in range(pieces):
        other = positive[torch.randperm(n, generator=generator)]
        laid = place(other, uniform(0.4, 0.7, n), 180, 1.3)
        top, left = (uniform(0, 0.8, n, 1, 1, 1) * size for _ in range(2))
        height, width = (uniform(0.15, 0.35, n, 1, 1, 1) * size for _ in range(2))
        window = (rows >= top) & (rows < top + height) & (columns >= left)
        window = window & (columns < left + width)
        scene = torch.maximum(scene, laid * window * uniform(0.6, 1.0, n, 1, 1, 1))
    contrast = uniform(0.7, 1.1, n, 1, 1, 1)
    grain = torch.randn(scene.shape, generator=generator) * noise
    return scene * 2 * contrast - 1 + grain


@cache
def scenes(
    part: str, size: int, copies: int = 1, *, noise: float = NOISE, pieces: int = PIECES
) -> tuple[Tensor, Tensor]:
    """Fixed scenes ``(copies * n, 1, size, size)`` and labels of a part of the digits' split."""
    ink, labels = split(part, SOURCE)
    generator = torch.Generator().manual_seed(SEEDS[part])
    rendered = [render(ink, size, generator, noise=noise, pieces=pieces) for _ in range(copies)]
    return torch.cat(rendered), labels.repeat(copies)


class Scenes:
    """Training scenes, new ones each epoch, seeded from torch's global generator.

    An epoch renders every training scan ``copies`` times in batches of ``batch``.
    """

    def __init__(
        self,
        size: int,
        *,
        batch: int = 48,
        copies: int = 1,
        noise: float = NOISE,
        pieces: int = PIECES,
    ) -> None:
        self.ink, self.labels = split("train", SOURCE)
        self.size, self.batch, self.copies = size, batch, copies
        self.noise, self.pieces = noise, pieces

    def __call__(self) -> Iterator[Batch]:
        """One epoch: ``((images,), labels)`` per batch; a last short batch is left out."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.copies):
            order = torch.randperm(len(self.ink), generator=generator)
            for start in range(0, len(order) - self.batch + 1, self.batch):
                pick = order[start : start + self.batch]
                scene = render(
                    self.ink[pick], self.size, generator, noise=self.noise, pieces=self.pieces
                )
                yield (scene,), self.labels[pick]


def workload(
    model: nn.Module, *, size: int = 64, batch: int = 1, name: str = "clutter"
) -> Workload:
    """A trained classifier ``(batch, 1, size, size) -> (batch, 10)`` with data and judges.

    Validation has 480 scenes (three of each scan), held-out 917.
    """
    validation = scenes("validation", size, 3)
    return Workload(
        model=model.eval(),
        inputs=(validation[0][:batch].clone(),),
        name=name,
        calibration=list(scenes("train", size)[0][:128].split(batch)),
        evaluate=Accuracy(*validation),
        verify=Accuracy(*scenes("held-out", size)),
        training=TrainingData(batches=Scenes(size), loss=F.cross_entropy),
        scale=1.0,
    )
