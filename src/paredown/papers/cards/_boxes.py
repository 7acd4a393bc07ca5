"""A small detection task: one to three scanned digits of three classes on a noisy canvas; mAP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.detection import Detections, Target, detection_loss, iou, selected
from paredown.papers.cards._parts import Build
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit
from paredown.zoo.leyolo import BINS, STRIDES

SIDE, DIGITS, JUDGED = 64, (0, 1, 4), 96
CELL = 32


@dataclass(frozen=True)
class Plan:
    """How long a network trains: steps of ``batch`` canvases at this rate."""

    steps: int
    batch: int = 8
    rate: float = 1.5e-2


def canvases(part: str, count: int, generator: torch.Generator) -> tuple[Tensor, list[Target]]:
    """``(count, 1, 64, 64)`` canvases with digits of 20 to 30 pixels in different quarters."""
    ink, labels = digits.split(part, 8)
    pools = [ink[labels == d] for d in DIGITS]
    out, targets = torch.full((count, 1, SIDE, SIDE), -1.0), list[Target]()

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for canvas in out:
        boxes, classes = list[list[float]](), list[int]()
        for quarter in torch.randperm(4, generator=generator)[: 1 + draw(3)].tolist():
            label, side = draw(len(DIGITS)), 20 + draw(11)
            scan = pools[label][draw(len(pools[label]))]
            top = CELL * (quarter // 2) + draw(CELL - side + 1)
            left = CELL * (quarter % 2) + draw(CELL - side + 1)
            large = F.interpolate(scan[None], (side, side), mode="bilinear")[0]
            canvas[:, top : top + side, left : left + side] = large
            boxes.append([left, top, left + side, top + side])
            classes.append(label)
        targets.append(Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor(classes)))
    return out + 0.2 * torch.randn(out.shape, generator=generator), targets


class Canvases:
    """One epoch of new canvases, seeded from torch's global generator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], list[Target]]]:
        """Batches of canvases and what is on them."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.plan.steps):
            x, targets = canvases("train", self.plan.batch, generator)
            yield (x,), targets


def average_precision(
    found: Sequence[Detections], wanted: Sequence[Target], label: int, overlap: float = 0.5
) -> float:
    """Area under precision over recall of one class, interpolated at every recall.

    Best first over all images; a detection is right if it overlaps an object that no better one
    took by ``overlap`` IoU.
    """
    hits, total = list[tuple[float, bool]](), 0
    for mine, truth in zip(found, wanted, strict=True):
        boxes = truth.boxes[truth.classes == label]
        total, taken = total + len(boxes), set[int]()
        for box, score in zip(
            mine.boxes[mine.classes == label], mine.scores[mine.classes == label], strict=True
        ):
            best = iou(box, boxes) if len(boxes) else torch.zeros(0)
            order = best.argsort(descending=True).tolist()
            right = next((i for i in order if best[i] >= overlap and i not in taken), None)
            if right is not None:
                taken.add(right)
            hits.append((float(score), right is not None))
    if not total or not hits:
        return 0.0
    hits.sort(key=lambda h: -h[0])
    right = torch.tensor([h for _, h in hits], dtype=torch.float64).cumsum(0)
    precision = right / torch.arange(1, len(hits) + 1)
    best_after = precision.flip(0).cummax(0).values.flip(0)
    gained = right.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return float((best_after * gained).sum() / total)


def found_in(model: nn.Module, x: Tensor) -> list[Detections]:
    """Detections of every image by boxes and scores, after suppression."""
    with torch.inference_mode():
        boxes, scores = model(x)
    return [
        selected(b, s, least=0.02, overlap=0.6, most=20) for b, s in zip(boxes, scores, strict=True)
    ]


def precision(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Mean average precision at IoU 0.5 on 96 canvases of held-out scans."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)

    def loss(raw: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        return detection_loss(raw, targets, STRIDES, BINS)

    fit(model, [Phase(Canvases(plan), 1)], rate=plan.rate, seed=seed, loss=loss)
    x, wanted = canvases("held-out", JUDGED, torch.Generator().manual_seed(7))
    found = [d for part in x.split(32) for d in found_in(model, part)]
    each = [average_precision(found, wanted, label) for label in range(len(DIGITS))]
    return {"mAP50": sum(each) / len(each)}
