"""Claim card of the detector LeYOLO (arXiv:2406.14239), beside a small one of YOLOv8's blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.nn.act import silu
from paredown.nn.conv import ConvNormAct
from paredown.nn.detection import decoded
from paredown.papers.cards import _boxes
from paredown.papers.cards._boxes import DIGITS, SIDE, Plan
from paredown.papers.cards._nets import images
from paredown.papers.cards._parts import Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo.leyolo import BINS, EPS, STRIDES, Head, LeYOLO, PyramidPool


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> ConvNormAct:
    """Convolution, norm, SiLU."""
    return ConvNormAct(inputs, outputs, kernel, stride=stride, act=silu, eps=EPS)


class C2f(nn.Module):
    """YOLOv8's block: 1x1, half of it through a residual pair of 3x3, all parts to a 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.enter, self.leave = conv(inputs, 2 * half), conv(3 * half, outputs)
        self.body = nn.Sequential(conv(half, half, 3), conv(half, half, 3))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        kept, passed = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat((kept, passed, passed + self.body(passed)), 1))


class C2fYOLO(nn.Module):
    """A detector of YOLOv8's plan at three strides, with LeYOLO's light head.

    The head is shared so that backbone and neck alone differ.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(conv(1, 8, 3, 2), conv(8, 16, 3, 2), C2f(16, 16))
        self.downs = nn.ModuleList(
            nn.Sequential(conv(i, o, 3, 2), C2f(o, o)) for i, o in ((16, a), (a, b), (b, c))
        )
        self.pool, self.up = PyramidPool(c, c, 5), nn.Upsample(scale_factor=2, mode="nearest")
        self.top4, self.top3 = C2f(b + c, b), C2f(a + b, a)
        self.down4, self.down5 = conv(a, a, 3, 2), conv(b, b, 3, 2)
        self.low4, self.low5 = C2f(a + b, b), C2f(b + c, c)
        self.head = Head(widths, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | list[Tensor]:
        """Images to boxes and scores, or to raw maps (training)."""
        p3 = self.downs[0](self.stem(x))
        p4 = self.downs[1](p3)
        p5 = self.pool(self.downs[2](p4))
        n4 = self.top4(torch.cat((self.up(p5), p4), 1))
        n3 = self.top3(torch.cat((self.up(n4), p3), 1))
        m4 = self.low4(torch.cat((self.down4(n3), n4), 1))
        m5 = self.low5(torch.cat((self.down5(m4), p5), 1))
        raw = self.head((n3, m4, m5))
        return raw if self.training else decoded(raw, STRIDES, BINS)


def small_detector(name: str) -> nn.Module:
    """LeYOLO at a quarter of Nano's width, or the C2f network of as many parameters."""
    if name == "LeYOLO":
        return LeYOLO(0.25, num_classes=len(DIGITS), in_channels=1)
    return C2fYOLO((16, 32, 40), len(DIGITS))


def detectors() -> list[Subject]:
    """Both small detectors at 320 x 320."""
    x = torch.randn(1, 1, 320, 320)
    return [(name, small_detector(name), (x,)) for name in ("C2f", "LeYOLO")]


class LeYOLOCard(ArchitectureCard):
    """Counts; a small one against C2f blocks with as many parameters; time."""

    key = "leyolo"
    claim = (
        "a detector of inverted bottlenecks with a light pyramid and head needs 42 % less work "
        "than YOLOv9-Tiny for the same precision (38.2 mAP at 4.5 GFLOP)"
    )
    rows = ("leyolo-n-320", "leyolo-n-480", "leyolo-s-480", "leyolo-s-640")
    errors = (0.005, None)
    work = (Work("LeYOLO", "C2f", 0.7), Work("LeYOLO", "C2f", 1.05, of="params"))
    timings = (Timing(detectors, (), "LeYOLO", "C2f", 1.0),)
    trained = Trained(
        _boxes.precision,
        small_detector,
        images(1, 1, SIDE, SIDE),
        {"quick": Plan(100), "full": Plan(1500)},
        seeds={"quick": 3, "full": 8},
        floors={"mAP50": 0.005},
    )
    learnt = (learns("LeYOLO", 0.3, "mAP50"), better("LeYOLO", "C2f", -0.01, "mAP50"))
