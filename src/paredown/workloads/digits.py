"""Scanned digits (scikit-learn's 8x8 scans, upscaled): a small real task with a fixed split.

720 scans to train, 160 to validate (``evaluate``, with three distorted
copies of each), 917 held out (``verify``): 1797 in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.workload import TrainingData, Workload

TRAIN, VALIDATION, HELD_OUT = 720, 160, 917
SPLIT_SEED = 20180113
COPIES = 3
CLASSES = 10

Batch = tuple[tuple[Tensor, ...], Tensor]


@cache
def scans() -> tuple[Tensor, Tensor]:
    """All scans as ``(1797, 1, 8, 8)`` in 0..1 and their labels, in the order of the split."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(SPLIT_SEED))
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return images[order], torch.tensor(data.target, dtype=torch.int64)[order]


def split(part: str, size: int) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, size, size)`` and labels of ``train``, ``validation`` or ``held-out``.

    Upscaled bicubically; ink is about +1, paper -1. Raises ``InputError`` for another part.
    """
    bounds = {
        "train": (0, TRAIN),
        "validation": (TRAIN, TRAIN + VALIDATION),
        "held-out": (TRAIN + VALIDATION, TRAIN + VALIDATION + HELD_OUT),
    }
    if part not in bounds:
        raise InputError(f"digits has the parts {', '.join(bounds)}, not {part!r}")
    images, labels = scans()
    low, high = bounds[part]
    return upscale(images[low:high], size), labels[low:high]


def upscale(images: Tensor, size: int) -> Tensor:
    """8x8 scans in 0..1 to ``(n, 1, size, size)`` around -1 (paper) .. +1 (ink)."""
    large = F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
    return large.clamp(0, 1) * 2 - 1


def augment(images: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Each image shifted, rotated, scaled, sheared, bent elastically and given noise, at random."""
    n, _, size, _ = images.shape

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1) * strength

    angle, shear = uniform(n) * math.radians(15), uniform(n) * 0.2
    zoom_x, zoom_y = 1 + uniform(n) * 0.15, 1 + uniform(n) * 0.15
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * zoom_x, -sin + shear, uniform(n) * 0.12], 1),
            torch.stack([sin, cos * zoom_y, uniform(n) * 0.12], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    bend = F.interpolate(uniform(n, 2, 5, 5) * 0.12, size=(size, size), mode="bicubic")
    moved = F.grid_sample(
        images + 1, grid + bend.permute(0, 2, 3, 1), mode="bilinear", align_corners=False
    )
    ink = 1 + uniform(n, 1, 1, 1) * 0.2
    return (
        moved * ink - 1 + uniform(n, 1, 1, 1) * 0.1 * torch.randn(images.shape, generator=generator)
    )


class Epochs:
    """Training batches of augmented images.

    Every call draws its seed from torch's global generator, so ``torch.manual_seed`` before a
    training run fixes all of it.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, batch: int = 48, strength: float = 1.0):
        self.images, self.labels, self.batch, self.strength = images, labels, batch, strength

    def __call__(self) -> Iterator[Batch]:
        """One epoch: ``((images,), labels)`` per batch; the last short batch is left out."""
        seed = int(torch.randint(2**31 - 1, ()))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator)
        for start in range(0, len(order) - self.batch + 1, self.batch):
            pick = order[start : start + self.batch]
            yield (
                (augment(self.images[pick], generator, strength=self.strength),),
                self.labels[pick],
            )


class Accuracy:
    """``evaluate``: one 0/1 score per example, in fixed order."""

    def __init__(self, images: Tensor, labels: Tensor, *, batch: int = 64) -> None:
        self.images, self.labels, self.batch = images, labels, batch

    def __call__(self, model: nn.Module) -> Tensor:
        """``(examples,)`` float 0 or 1: whether the largest logit is the label."""
        return torch.cat(
            [(logits.float().argmax(-1) == y).float() for logits, y in self._predict(model)]
        )

    def _predict(self, model: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
        with torch.inference_mode():
            for start in range(0, len(self.images), self.batch):
                stop = start + self.batch
                yield model(self.images[start:stop]), self.labels[start:stop]


def workload(model: nn.Module, *, size: int = 96, batch: int = 1, name: str = "digits") -> Workload:
    """A trained classifier ``(batch, 1, size, size) -> (batch, 10)`` with data and judges."""
    train = split("train", size)
    validation = split("validation", size)
    images, labels = validation
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    # 160 scans saturate: distorted copies tell small losses apart.
    copies = [images, *(augment(images, generator, strength=0.8) for _ in range(COPIES))]
    judged = torch.cat(copies), labels.repeat(1 + COPIES)
    return Workload(
        model=model.eval(),
        inputs=(validation[0][:batch].clone(),),
        name=name,
        calibration=list(train[0][:128].split(batch)),
        evaluate=Accuracy(*judged),
        verify=Accuracy(*split("held-out", size)),
        training=TrainingData(batches=Epochs(*train), loss=F.cross_entropy),
        scale=1.0,
    )
