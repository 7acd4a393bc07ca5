"""LeYOLO: a detector that spends few multiplications (Hollard et al. 2024, arXiv:2406.14239).

Inverted bottlenecks without squeeze-excite, a light two-way pyramid (FPAN) of the same blocks, and
a head of pointwise and depthwise convolutions per level (DNiN). Loss and decoding are YOLOv8's:
task-aligned assignment, complete IoU, boxes as distributions (`paredown.nn.detection`).

Deviations: none known in the layout, which is the authors' files'. Their Medium and Large are one
network whose detect taps were left at layers 27, 32 and 37, so its last four neck blocks feed
nothing; they are kept (their weights are in the released file) but not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import silu
from paredown.nn.conv import ConvNormAct
from paredown.nn.detection import Detections, Target, decoded, detection_loss, selected
from paredown.nn.features import need_size
from paredown.nn.inverted import InvertedResidual

EPS, STRIDES, BINS = 1e-3, (8, 16, 32), 16
VARIANTS: dict[str, tuple[float, bool]] = {"n": (1.0, False), "s": (1.33, False), "m": (1.33, True)}

Row = tuple[Any, ...]


def block(outputs: int, kernel: int, inner: int | None, stride: int = 1) -> Row:
    """A row of the tables below: an inverted bottleneck (``inner`` None: no expansion)."""
    return ("block", outputs, kernel, inner, stride)


def layers(deep: bool) -> list[Row]:
    """Backbone and neck, layer by layer; ``deep`` is the Medium and Large network."""
    more = 1 if deep else 0
    backbone = [
        ("conv", 16, 3, 2),
        ("conv", 16, 1, 1),
        block(16, 3, None, 2),
        block(32, 3, 96, 2),
        *[block(32, 3, 96)] * (1 + more),
        block(64, 5, 96, 2),
        *[block(64, 5, 192)] * (4 + more),
        block(96, 5, 576, 2),
        *[block(96, 5, 576)] * (3 + more),
        ("pool", 96, 5),
    ]
    p3, p4, p5 = 4 + more, 9 + 2 * more, len(backbone) - 1
    neck: list[Row] = [
        ("up",),
        ("cat", p4),
        *[block(64, 5, 128)] * (3 + more),
        ("up",),
        ("cat", p3),
        block(32, 3, None),
        *[block(32, 3, 64)] * 2,
        *[block(64, 5, 128)] * more,
        ("conv", 64, 3, 2),
        ("cat", p5 + 5 + more),
        *[block(64, 5, 128)] * (3 + more),
        ("conv", 96, 3, 2),
        ("cat", p5),
        *[block(96, 5, 192)] * 3,
        *[block(64, 5, 128)] * more,
    ]
    return backbone + neck


def taps(deep: bool) -> tuple[int, int, int]:
    """The layers that the head reads, as in the authors' files."""
    return (27, 32, 37) if deep else (24, 29, 34)


def scaled(channels: int, width: float) -> int:
    """Channels times the width, up to the next multiple of 8."""
    return math.ceil(channels * width / 8) * 8


class PyramidPool(nn.Module):
    """1x1 to half, three max-pools in a row, all four maps to 1x1 (SPPF of YOLOv5)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        half = inputs // 2
        self.enter = ConvNormAct(inputs, half, act=silu, eps=EPS)
        self.leave = ConvNormAct(4 * half, outputs, act=silu, eps=EPS)
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        maps = [self.enter(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.leave(torch.cat(maps, 1))


class Concat(nn.Module):
    """The map before and that of layer ``source``, channel by channel."""

    def __init__(self, source: int) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Both maps behind each other."""
        return torch.cat((x, other), 1)


def branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A DNiN branch: 1x1, two depthwise 3x3, 1x1 out."""
    return nn.Sequential(
        ConvNormAct(inputs, width, act=silu, eps=EPS),
        ConvNormAct(width, width, 3, groups=width, act=silu, eps=EPS),
        ConvNormAct(width, width, 3, groups=width, act=silu, eps=EPS),
        nn.Conv2d(width, outputs, 1),
    )


class Head(nn.Module):
    """Boxes (four distributions of ``BINS``) and class logits of every level."""

    def __init__(self, inputs: Sequence[int], num_classes: int) -> None:
        super().__init__()
        box = max(16, inputs[0] // 4, 4 * BINS)
        named = max(inputs[0], min(num_classes, 100))
        self.boxes = nn.ModuleList(branch(n, box, 4 * BINS) for n in inputs)
        self.classes = nn.ModuleList(branch(n, named, num_classes) for n in inputs)
        for name, bias in self.named_parameters():
            # The last layers' alone: wide boxes, about five objects in an image of 640 pixels.
            part, level, *inner = name.split(".")
            if inner == ["3", "bias"]:
                rare = math.log(5 / num_classes / (640 / STRIDES[int(level)]) ** 2)
                nn.init.constant_(bias, 1.0 if part == "boxes" else rare)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of three levels to ``(batch, 4 * BINS + classes, h, w)`` each."""
        parts = zip(maps, self.boxes, self.classes, strict=True)
        return [torch.cat((boxes(x), classes(x)), 1) for x, boxes, classes in parts]


class LeYOLO(nn.Module):
    """LeYOLO for ``(batch, in_channels, h, w)`` images whose sides are multiples of 32.

    Returns boxes ``(batch, anchors, 4)``, left, top, right, bottom in pixels, and scores
    ``(batch, anchors, num_classes)``; while training the raw maps of the three levels, for
    :meth:`loss`. With ``features_only`` the maps that the head reads (strides 8, 16, 32).
    """

    def __init__(
        self,
        width: float = 1.0,
        deep: bool = False,
        num_classes: int = 80,
        in_channels: int = 3,
        *,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.taps = num_classes, taps(deep)
        self.layers, ends = nn.ModuleList(), list[int]()
        channels = in_channels
        for kind, *said in layers(deep):
            layer, channels = built(kind, said, channels, width, ends)
            self.layers.append(layer)
            ends.append(channels)
        self.run = needed(self.layers, self.taps)
        self.head = None
        if not features_only:
            self.head = Head([ends[i] for i in self.taps], num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | list[Tensor]:
        """Images to boxes and scores, to raw maps (training), or to features."""
        need_size(x, network="LeYOLO", multiple=32, minimum=32)
        seen: dict[int, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if i in self.run:
                x = layer(x, seen[layer.source]) if isinstance(layer, Concat) else layer(x)
                seen[i] = x
        maps = [seen[i] for i in self.taps]
        if self.head is None:
            return maps
        raw = self.head(maps)
        return raw if self.training else decoded(raw, STRIDES, BINS)

    @torch.no_grad()
    def detect(
        self, x: Tensor, *, least: float = 0.25, overlap: float = 0.7, most: int = 300
    ) -> list[Detections]:
        """Each image's detections that score ``least``, by non-maximum suppression of each class.

        Boxes that overlap a better one by more than ``overlap`` (IoU) go, ``most`` stay. Raises
        ``InputError`` while training or without a head.
        """
        if self.training or self.head is None:
            raise InputError("detect() needs the network with its head in evaluation: .eval()")
        boxes, scores = self(x)
        return [
            selected(b, s, least=least, overlap=overlap, most=most)
            for b, s in zip(boxes, scores, strict=True)
        ]

    def loss(self, raw: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """The loss of the training output against every image's boxes and classes."""
        return detection_loss(raw, targets, STRIDES, BINS)


def built(
    kind: str, said: Sequence[Any], inputs: int, width: float, ends: Sequence[int]
) -> tuple[nn.Module, int]:
    """A row's layer and the channels that it gives."""
    if kind == "up":
        return nn.Upsample(scale_factor=2, mode="nearest"), inputs
    if kind == "cat":
        return Concat(said[0]), inputs + ends[said[0]]
    outputs = scaled(said[0], width)
    if kind == "pool":
        return PyramidPool(inputs, outputs, said[1]), outputs
    if kind == "conv":
        _, kernel, stride = said
        return (
            ConvNormAct(inputs, outputs, kernel, stride=stride, act=silu, eps=EPS, bias=True),
            outputs,
        )
    _, kernel, inner, stride = said
    wide = inputs if inner is None else scaled(inner, width)
    return (
        InvertedResidual(
            inputs,
            outputs,
            inner=wide,
            pointwise=inner is not None,
            kernel=kernel,
            stride=stride,
            act=silu,
            eps=EPS,
            bias=True,
        ),
        outputs,
    )


def needed(chain: nn.ModuleList, ends: Sequence[int]) -> frozenset[int]:
    """The layers that these ends depend on."""
    found, open_ends = set[int](), list(ends)
    while open_ends:
        i = open_ends.pop()
        if i < 0 or i in found:
            continue
        found.add(i)
        open_ends += list(sources(i, chain[i]))
    return frozenset(found)


def sources(i: int, layer: nn.Module) -> Iterator[int]:
    """The layers that layer i reads."""
    yield i - 1
    if isinstance(layer, Concat):
        yield layer.source


def leyolo(
    variant: str = "n", num_classes: int = 80, in_channels: int = 3, **settings: Any
) -> LeYOLO:
    """A published network: n, s or m (Large is Medium, for larger images).

    Raises ``UnknownName`` for another.
    """
    if variant not in VARIANTS:
        raise UnknownName("LeYOLO", variant, list(VARIANTS))
    return LeYOLO(*VARIANTS[variant], num_classes, in_channels, **settings)
