"""Inception-v4 and Inception-ResNet (Szegedy et al. 2016, arXiv:1602.07261).

Figures 3 to 9 (v4), 3 and 14 to 19 (ResNet). Inception-ResNet-v2 is the authors' released network
(tensorflow/models, slim), which is the one with the published accuracy: its stem is that of v1
with an Inception block of 320 channels behind it, its widths add up (the paper prints 1154 for a
sum of 1152), its blocks repeat 10, 20, 10 and one wide convolution stands before the pool.
Inception-ResNet-v1 follows the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.conv import ConvNormAct, classifier
from paredown.nn.features import need_size, tapped

# Output channels, kernel, stride; strided convolutions are unpadded ("V" in the figures).
Layer = tuple[int, int | tuple[int, int], int]
LEAST = 75

conv = partial(ConvNormAct, eps=1e-3)


class Concat(nn.Module):
    """Branches that read the same map, joined over channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, sum of outputs, h', w')``."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def chain(inputs: int, *layers: Layer, valid: bool = False) -> nn.Sequential:
    """Convolutions one behind the other; ``valid``: none of them is padded."""
    built: list[nn.Module] = []
    for outputs, kernel, stride in layers:
        padding = 0 if valid or stride > 1 else None
        built.append(conv(inputs, outputs, kernel, stride=stride, padding=padding))
        inputs = outputs
    return nn.Sequential(*built)


def pooled(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 average pool that does not count its padding, then 1x1."""
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return nn.Sequential(pool, conv(inputs, outputs))


def shrinking_pool() -> nn.MaxPool2d:
    """The unpadded 3x3 max-pool of stride 2 that runs beside strided convolutions."""
    return nn.MaxPool2d(3, 2)


def stem_v4(in_channels: int) -> nn.Sequential:
    """299 x 299 to 35 x 35 x 384 (figure 3)."""
    return nn.Sequential(
        chain(in_channels, (32, 3, 2)),
        chain(32, (32, 3, 1), valid=True),
        chain(32, (64, 3, 1)),
        Concat(shrinking_pool(), chain(64, (96, 3, 2))),
        Concat(
            nn.Sequential(chain(160, (64, 1, 1)), chain(64, (96, 3, 1), valid=True)),
            nn.Sequential(
                chain(160, (64, 1, 1), (64, (1, 7), 1), (64, (7, 1), 1)),
                chain(64, (96, 3, 1), valid=True),
            ),
        ),
        Concat(chain(192, (192, 3, 2)), shrinking_pool()),
    )


def stem_resnet(in_channels: int) -> nn.Sequential:
    """299 x 299 to 71 x 71 x 192, the beginning of both residual networks (figure 14)."""
    return nn.Sequential(
        chain(in_channels, (32, 3, 2)),
        chain(32, (32, 3, 1), valid=True),
        chain(32, (64, 3, 1)),
        shrinking_pool(),
        chain(64, (80, 1, 1)),
        chain(80, (192, 3, 1), valid=True),
    )


def block_a() -> Concat:
    """Inception-A, 384 channels in and out (figure 4)."""
    return Concat(
        chain(384, (96, 1, 1)),
        chain(384, (64, 1, 1), (96, 3, 1)),
        chain(384, (64, 1, 1), (96, 3, 1), (96, 3, 1)),
        pooled(384, 96),
    )


def block_b() -> Concat:
    """Inception-B, 1024 channels in and out (figure 5)."""
    return Concat(
        chain(1024, (384, 1, 1)),
        chain(1024, (192, 1, 1), (224, (1, 7), 1), (256, (7, 1), 1)),
        chain(
            1024,
            (192, 1, 1),
            (192, (7, 1), 1),
            (224, (1, 7), 1),
            (224, (7, 1), 1),
            (256, (1, 7), 1),
        ),
        pooled(1024, 128),
    )


def block_c() -> Concat:
    """Inception-C, 1536 channels in and out; the long branches end in two (figure 6)."""

    def ends(inputs: int) -> Concat:
        return Concat(chain(inputs, (256, (1, 3), 1)), chain(inputs, (256, (3, 1), 1)))

    return Concat(
        chain(1536, (256, 1, 1)),
        nn.Sequential(chain(1536, (384, 1, 1)), ends(384)),
        nn.Sequential(chain(1536, (384, 1, 1), (448, (3, 1), 1), (512, (1, 3), 1)), ends(512)),
        pooled(1536, 256),
    )


def reduction_a(inputs: int, k: int, m: int, n: int, last: int) -> Concat:
    """Reduction-A: a strided 3x3 of ``n``, a chain ``k, m, last`` and a pool (figure 7, table 1).

    The paper's letters are k, l, m, n with l the middle of the chain.
    """
    return Concat(
        chain(inputs, (n, 3, 2)),
        chain(inputs, (k, 1, 1), (m, 3, 1), (last, 3, 2)),
        shrinking_pool(),
    )


class ScaledResidual(nn.Module):
    """``act(x + scale * F(x))``, F ending in a linear 1x1 expansion to x's width (section 3.3)."""

    def __init__(
        self, channels: int, body: Concat, width: int, scale: float, *, act: bool = True
    ) -> None:
        super().__init__()
        self.body, self.scale = body, scale
        # A bias and no batch norm: the summation is not normalised (section 3.2).
        self.expand = nn.Conv2d(width, channels, 1)
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return self.act(x + self.scale * self.expand(self.body(x)))


def residual_a(channels: int, widths: tuple[int, int], scale: float) -> ScaledResidual:
    """35 x 35: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3 of ``widths`` (figures 10 and 16)."""
    middle, end = widths
    body = Concat(
        chain(channels, (32, 1, 1)),
        chain(channels, (32, 1, 1), (32, 3, 1)),
        chain(channels, (32, 1, 1), (middle, 3, 1), (end, 3, 1)),
    )
    return ScaledResidual(channels, body, 64 + end, scale)


def residual_line(
    channels: int,
    taps: int,
    first: int,
    widths: tuple[int, int, int],
    scale: float,
    *,
    act: bool = True,
) -> ScaledResidual:
    """17 x 17 (``taps`` 7) and 8 x 8 (3): 1x1; 1x1, row, column (figures 11, 13, 17 and 19)."""
    squeeze, row, column = widths
    body = Concat(
        chain(channels, (first, 1, 1)),
        chain(channels, (squeeze, 1, 1), (row, (1, taps), 1), (column, (taps, 1), 1)),
    )
    return ScaledResidual(channels, body, first + column, scale, act=act)


class Inception(nn.Module):
    """A network of three resolutions for ``(batch, in_channels, h, w)`` images, 75 pixels or more.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the maps at the end of each
    resolution (35, 17 and 8 pixels for images of 299). ``repeats`` are the blocks per resolution;
    ``scales`` (residual kinds) multiply the residuals.
    """

    def __init__(
        self,
        kind: Literal["v4", "resnet-v1", "resnet-v2"] = "v4",
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        repeats: Sequence[int] | None = None,
        scales: tuple[float, float, float] = (0.17, 0.10, 0.20),
        dropout: float = 0.2,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if kind not in PARTS:
            raise UnknownName("Inception network", kind, list(PARTS))
        build, usual = PARTS[kind]
        stages, last, features = build(in_channels, tuple(repeats or usual), scales)
        self.stages = nn.ModuleList(stages)
        self.last = nn.Identity() if features_only else last
        self.head = None if features_only else classifier(features, num_classes, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the features of three resolutions."""
        need_size(x, network="Inception", minimum=LEAST)
        maps = tapped(self.stages, x, range(3))
        return maps if self.head is None else self.head(self.last(maps[-1]))


Parts = tuple[list[nn.Module], nn.Module, int]


def _v4(in_channels: int, n: tuple[int, ...], scales: tuple[float, ...]) -> Parts:
    down_b = Concat(
        chain(1024, (192, 1, 1), (192, 3, 2)),
        chain(1024, (256, 1, 1), (256, (1, 7), 1), (320, (7, 1), 1), (320, 3, 2)),
        shrinking_pool(),
    )
    stages: list[nn.Module] = [
        nn.Sequential(stem_v4(in_channels), *(block_a() for _ in range(n[0]))),
        nn.Sequential(reduction_a(384, 192, 224, 384, 256), *(block_b() for _ in range(n[1]))),
        nn.Sequential(down_b, *(block_c() for _ in range(n[2]))),
    ]
    return stages, nn.Identity(), 1536


def _resnet_v1(in_channels: int, n: tuple[int, ...], scales: tuple[float, ...]) -> Parts:
    a, b, c = scales
    down_b = Concat(
        chain(896, (256, 1, 1), (384, 3, 2)),
        chain(896, (256, 1, 1), (256, 3, 2)),
        chain(896, (256, 1, 1), (256, 3, 1), (256, 3, 2)),
        shrinking_pool(),
    )
    stages: list[nn.Module] = [
        nn.Sequential(
            stem_resnet(in_channels),
            chain(192, (256, 3, 2)),
            *(residual_a(256, (32, 32), a) for _ in range(n[0])),
        ),
        nn.Sequential(
            reduction_a(256, 192, 192, 384, 256),
            *(residual_line(896, 7, 128, (128, 128, 128), b) for _ in range(n[1])),
        ),
        nn.Sequential(
            down_b, *(residual_line(1792, 3, 192, (192, 192, 192), c) for _ in range(n[2]))
        ),
    ]
    return stages, nn.Identity(), 1792


def _resnet_v2(in_channels: int, n: tuple[int, ...], scales: tuple[float, ...]) -> Parts:
    a, b, c = scales
    first = Concat(
        chain(192, (96, 1, 1)),
        chain(192, (48, 1, 1), (64, 5, 1)),
        chain(192, (64, 1, 1), (96, 3, 1), (96, 3, 1)),
        pooled(192, 64),
    )
    down_b = Concat(
        chain(1088, (256, 1, 1), (384, 3, 2)),
        chain(1088, (256, 1, 1), (288, 3, 2)),
        chain(1088, (256, 1, 1), (288, 3, 1), (320, 3, 2)),
        shrinking_pool(),
    )
    # The very last block is neither scaled nor followed by a ReLU (released code).
    ends = [
        residual_line(2080, 3, 192, (192, 224, 256), 1.0 if last else c, act=not last)
        for last in (i == n[2] - 1 for i in range(n[2]))
    ]
    stages: list[nn.Module] = [
        nn.Sequential(
            stem_resnet(in_channels),
            shrinking_pool(),
            first,
            *(residual_a(320, (48, 64), a) for _ in range(n[0])),
        ),
        nn.Sequential(
            reduction_a(320, 256, 256, 384, 384),
            *(residual_line(1088, 7, 192, (128, 160, 192), b) for _ in range(n[1])),
        ),
        nn.Sequential(down_b, *ends),
    ]
    return stages, conv(2080, 1536), 1536


PARTS = {
    "v4": (_v4, (4, 7, 3)),
    "resnet-v1": (_resnet_v1, (5, 10, 5)),
    "resnet-v2": (_resnet_v2, (10, 20, 10)),
}
