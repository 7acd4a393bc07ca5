"""Anchor-free detection: decoding, non-maximum suppression, assignment and loss (YOLOv8's).

Every cell of every level predicts one box, its four sides as distributions over distances in
strides (arXiv:2006.04388), and a score per class. Cells are given to objects by how well they both
classify and place them (TOOD, arXiv:2108.07755). Boxes are left, top, right, bottom in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.errors import InputError

# Weights of overlap, classification and distribution losses; exponents of the assignment.
BOX, CLASS, DISTRIBUTION = 7.5, 0.5, 1.5
SCORE_POWER, OVERLAP_POWER, CANDIDATES = 0.5, 6.0, 10


class Target(NamedTuple):
    """An image's objects: boxes ``(n, 4)`` in pixels and classes ``(n,)``."""

    boxes: Tensor
    classes: Tensor


class Detections(NamedTuple):
    """What was found: boxes ``(n, 4)`` in pixels, scores and classes ``(n,)``, best first."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def cells(raw: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Centres ``(anchors, 2)`` in pixels, x first, and strides ``(anchors, 1)`` of all cells."""
    centres, steps = list[Tensor](), list[Tensor]()
    for level, stride in zip(raw, strides, strict=True):
        h, w = level.shape[-2:]
        y = (torch.arange(h, device=level.device, dtype=level.dtype) + 0.5) * stride
        x = (torch.arange(w, device=level.device, dtype=level.dtype) + 0.5) * stride
        row, column = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((column.reshape(-1), row.reshape(-1)), 1))
        steps.append(torch.full((h * w, 1), float(stride), device=level.device, dtype=level.dtype))
    return torch.cat(centres), torch.cat(steps)


def flat(raw: Sequence[Tensor], bins: int) -> tuple[Tensor, Tensor]:
    """Side logits ``(batch, anchors, 4, bins)`` and class logits ``(batch, anchors, classes)``."""
    joined = torch.cat([level.flatten(2) for level in raw], 2).transpose(1, 2)
    sides, classes = joined.split((4 * bins, joined.shape[2] - 4 * bins), 2)
    return sides.unflatten(2, (4, bins)), classes


def boxes_of(sides: Tensor, centres: Tensor, steps: Tensor) -> Tensor:
    """Boxes from side logits: the expected distance of each side from its cell's centre."""
    bins = torch.arange(sides.shape[-1], device=sides.device, dtype=sides.dtype)
    distance = (sides.softmax(-1) * bins).sum(-1) * steps
    before, after = distance.chunk(2, -1)
    return torch.cat((centres - before, centres + after), -1)


def decoded(raw: Sequence[Tensor], strides: Sequence[int], bins: int) -> tuple[Tensor, Tensor]:
    """Boxes ``(batch, anchors, 4)`` and scores ``(batch, anchors, classes)`` of raw maps."""
    sides, classes = flat(raw, bins)
    return boxes_of(sides, *cells(raw, strides)), classes.sigmoid()


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes ``(..., 4)``."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast, ``(..., 4)``."""
    corner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    common = corner.clamp(min=0).prod(-1)
    return common / (area(a) + area(b) - common + 1e-7)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the distance of the centres and the difference in shape (CIoU, arXiv:1911.08287)."""
    overlap = iou(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    turn = torch.atan2(size_b[..., 0], size_b[..., 1]) - torch.atan2(size_a[..., 0], size_a[..., 1])
    shape = 4 / math.pi**2 * turn.square()
    with torch.no_grad():
        weight = shape / (shape - overlap + 1 + 1e-7)
    return overlap - between / (hull.square().sum(-1) + 1e-7) - weight * shape


def suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Greedy non-maximum suppression: the indices that stay, best first."""
    left, kept = scores.argsort(descending=True, stable=True), list[Tensor]()
    while left.numel():
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[iou(boxes[best], boxes[left]) <= overlap]
    return torch.stack(kept) if kept else left


def selected(
    boxes: Tensor, scores: Tensor, *, least: float, overlap: float, most: int
) -> Detections:
    """One image's detections: boxes ``(anchors, 4)``, scores ``(anchors, classes)``.

    Each class is suppressed on its own; raises ``InputError`` for bounds outside [0, 1].
    """
    if not 0 <= least <= 1 or not 0 <= overlap <= 1:
        raise InputError(f"least score and overlap lie in [0, 1], got {least} and {overlap}")
    anchor, label = (scores >= least).nonzero(as_tuple=True)
    boxes, values = boxes[anchor], scores[anchor, label]
    # Boxes of different classes are moved apart, so one pass serves all.
    span = boxes.abs().amax() * 2 + 1 if boxes.numel() else 1.0
    kept = suppressed(boxes + (label * span)[:, None], values, overlap)[:most]
    return Detections(boxes[kept], values[kept], label[kept])


def assigned(
    boxes: Tensor, scores: Tensor, centres: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """Which object each cell is to find (-1: none), and how well it should score: ``(anchors,)``.

    An object takes the cells inside its box that fit best, at most ``CANDIDATES``; a cell that two
    take goes to the one it overlaps more.
    """
    count = centres.shape[0]
    if not target.classes.numel():
        nothing = torch.full((count,), -1, dtype=torch.long, device=boxes.device)
        return nothing, boxes.new_zeros(count)
    wanted = target.boxes[:, None]
    inside = ((centres > wanted[..., :2]) & (centres < wanted[..., 2:])).all(-1)
    overlap = complete_iou(wanted, boxes).clamp(min=0) * inside
    fit = scores[:, target.classes].T ** SCORE_POWER * overlap**OVERLAP_POWER * inside
    best = fit.topk(min(CANDIDATES, count), 1).indices
    taken = torch.zeros_like(inside).scatter_(1, best, True) & inside
    owner = torch.where(taken, overlap, -1.0).argmax(0)
    mine = F.one_hot(owner, taken.shape[0]).T.bool() & taken
    fit, overlap = fit * mine, overlap * mine
    level = fit / (fit.amax(1, keepdim=True) + 1e-9) * overlap.amax(1, keepdim=True)
    return torch.where(taken.any(0), owner, -1), level.amax(0)


def detection_loss(
    raw: Sequence[Tensor], targets: Sequence[Target], strides: Sequence[int], bins: int
) -> Tensor:
    """The training loss, a scalar: overlap, classes and side distributions, over the batch.

    Raises ``InputError`` unless there is one target per image.
    """
    sides, logits = flat(raw, bins)
    if len(targets) != logits.shape[0]:
        raise InputError(f"{logits.shape[0]} images need as many targets, got {len(targets)}")
    centres, steps = cells(raw, strides)
    boxes = boxes_of(sides, centres, steps)
    wanted_scores = torch.zeros_like(logits)
    overlap_loss, side_loss = logits.sum() * 0, logits.sum() * 0
    for i, target in enumerate(targets):
        with torch.no_grad():
            owner, level = assigned(boxes[i], logits[i].sigmoid(), centres, target)
            found = (owner >= 0).nonzero()[:, 0]
            mine = owner[found]
        if not found.numel():
            continue
        wanted_scores[i, found, target.classes[mine]] = level[found].to(logits.dtype)
        wanted, weight = target.boxes[mine], level[found]
        lost = 1 - complete_iou(boxes[i, found], wanted)
        overlap_loss = overlap_loss + (lost * weight).sum()
        near = torch.cat((centres[found] - wanted[:, :2], wanted[:, 2:] - centres[found]), 1)
        near = (near / steps[found]).clamp(0, bins - 1.01)
        side_loss = side_loss + (between_bins(sides[i, found], near).mean(1) * weight).sum()
    total = wanted_scores.sum().clamp(min=1)
    class_loss = F.binary_cross_entropy_with_logits(logits, wanted_scores, reduction="sum")
    lost = BOX * overlap_loss + CLASS * class_loss + DISTRIBUTION * side_loss
    return lost / total


def between_bins(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy against the two bins a distance lies between, weighted by nearness."""
    low = distance.floor().long()
    share = distance - low
    picked = logits.log_softmax(-1)
    here = picked.gather(-1, low[..., None])[..., 0]
    above = picked.gather(-1, low[..., None] + 1)[..., 0]
    return -(here * (1 - share) + above * share)
