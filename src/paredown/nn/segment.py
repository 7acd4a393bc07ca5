"""Losses of segmentation: overlap and cross-entropy over pixels or voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from paredown.errors import InputError


def dice(shares: Tensor, targets: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Soft Dice coefficient of every class, 1 for a perfect match (Milletari et al. 2016).

    ``shares`` in [0, 1] and ``targets`` are ``(batch, classes, ...)``; sums run over the batch and
    space (arXiv:1606.04797, section 3), each square in the denominator. Out: ``(classes,)``.
    """
    if shares.shape != targets.shape:
        raise InputError(
            f"scores {tuple(shares.shape)} and targets {tuple(targets.shape)} differ in shape"
        )
    targets = targets.to(shares.dtype)
    over = [0, *range(2, shares.ndim)]
    both = (shares * targets).sum(over)
    total = shares.square().sum(over) + targets.square().sum(over)
    return (2 * both + eps) / (total + eps)


def dice_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """``1 - dice`` plus binary cross-entropy, for classes that may overlap (nested tumour parts).

    ``scores`` are logits, ``targets`` zeros and ones, both ``(batch, classes, ...)``. A number.
    """
    overlap = dice(scores.sigmoid(), targets).mean()
    return 1 - overlap + F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype))


def weighted_cross_entropy(scores: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """Cross-entropy of exclusive classes, each voxel's loss times the weight of its class.

    ``scores`` are ``(batch, classes, ...)``, ``targets`` class numbers ``(batch, ...)``. The mean
    is over voxels, not over weights. ``InputError`` unless there is a weight per class.
    """
    if len(weights) != scores.shape[1]:
        raise InputError(f"{len(weights)} weights for {scores.shape[1]} classes")
    each = F.cross_entropy(scores, targets, reduction="none")
    return (each * scores.new_tensor(weights)[targets]).mean()
