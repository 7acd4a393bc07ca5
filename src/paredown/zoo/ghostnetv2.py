"""GhostNetV2: cheap features with long-range gates (Tang et al. 2022, arXiv:2211.12905).

Rows 1 and 2 of the table use plain ghost modules, as the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.act import hard_sigmoid, relu
from paredown.nn.conv import ConvNormAct, he_init, round_channels
from paredown.nn.features import need_size, tapped
from paredown.nn.ghost import GhostModule
from paredown.nn.squeeze import SqueezeExcite

# Depthwise kernel, expanded channels, output channels, squeeze-excite share, stride (table 1 of
# GhostNet, arXiv:1911.11907, which V2 keeps).
ROWS: tuple[tuple[int, int, int, float, int], ...] = (
    (3, 16, 16, 0, 1),
    (3, 48, 24, 0, 2),
    (3, 72, 24, 0, 1),
    (5, 72, 40, 0.25, 2),
    (5, 120, 40, 0.25, 1),
    (3, 240, 80, 0, 2),
    (3, 200, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 184, 80, 0, 1),
    (3, 480, 112, 0.25, 1),
    (3, 672, 112, 0.25, 1),
    (5, 672, 160, 0.25, 2),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 0.25, 1),
    (5, 960, 160, 0, 1),
    (5, 960, 160, 0.25, 1),
)
PLAIN_ROWS = 2


class DecoupledAttention(nn.Module):
    """DFC attention: a gate in (0, 1) per pixel and channel of a map (section 3.2, equation 5).

    At half resolution: 1x1, a row of ``reach`` taps per channel, a column of as many, sigmoid;
    then enlarged to the map's size by its nearest neighbours.
    """

    def __init__(self, inputs: int, outputs: int, *, reach: int = 5) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.mix = ConvNormAct(inputs, outputs, act=None)
        self.row = ConvNormAct(outputs, outputs, (1, reach), groups=outputs, act=None)
        self.column = ConvNormAct(outputs, outputs, (reach, 1), groups=outputs, act=None)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, *size)``."""
        gate = self.gate(self.column(self.row(self.mix(self.pool(x)))))
        return F.interpolate(gate, size=size, mode="nearest")


class GhostBottleneck(nn.Module):
    """Ghost expansion (gated where ``attention``), strided depthwise, SE, ghost projection, skip.

    Figure 4b of the paper.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        squeeze: float = 0.0,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.expand = GhostModule(inputs, inner)
        self.attention = DecoupledAttention(inputs, inner) if attention else None
        self.depthwise = (
            ConvNormAct(inner, inner, kernel, stride=stride, groups=inner, act=None)
            if stride > 1
            else nn.Identity()
        )
        self.squeeze = (
            SqueezeExcite(inner, round_channels(inner * squeeze, 4), gate=hard_sigmoid)
            if squeeze
            else nn.Identity()
        )
        self.project = GhostModule(inner, outputs, act=None)
        self.skip = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(
                ConvNormAct(inputs, inputs, kernel, stride=stride, groups=inputs, act=None),
                ConvNormAct(inputs, outputs, act=None),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        wide = self.expand(x)
        if self.attention is not None:
            wide = wide * self.attention(x, (wide.shape[2], wide.shape[3]))
        return self.project(self.squeeze(self.depthwise(wide))) + self.skip(x)


class GhostNetV2(nn.Module):
    """GhostNetV2 for ``(batch, in_channels, h, w)`` images of sides 33 or more.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the maps before each halving
    of the resolution and the last one (strides 2 to 32). ``width`` multiplies all channels (rounded
    to multiples of 4); ``attention=False`` is GhostNet (V1). ``rows`` replaces the table.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        rows: Sequence[tuple[int, int, int, float, int]] = ROWS,
        plain_rows: int = PLAIN_ROWS,
        stem: int = 16,
        stem_stride: int = 2,
        features: int = 1280,
        dropout: float = 0.2,
        attention: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        channels = round_channels(stem * width, 4)
        stages: list[list[nn.Module]] = [
            [ConvNormAct(in_channels, channels, 3, stride=stem_stride, act=relu)]
        ]
        inner = channels
        for i, (kernel, expanded, c, squeeze, stride) in enumerate(rows):
            inner, outputs = round_channels(expanded * width, 4), round_channels(c * width, 4)
            if stride > 1:
                stages.append([])
            stages[-1].append(
                GhostBottleneck(
                    channels,
                    inner,
                    outputs,
                    kernel,
                    stride=stride,
                    squeeze=squeeze,
                    attention=attention and i >= plain_rows,
                )
            )
            channels = outputs
        self.stages = nn.ModuleList(nn.Sequential(*s) for s in stages)
        # Every halving rounds up; the last gate pools 2x2, so its input needs two pixels.
        self.least = stem_stride * 2 ** (len(stages) - 1) + 1 if attention else 1
        self.head = None
        if not features_only:
            self.head = nn.Sequential(
                ConvNormAct(channels, inner, act=relu),
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(inner, features, 1),
                nn.ReLU(inplace=True),
                nn.Flatten(1),
                nn.Dropout(dropout),
                nn.Linear(features, num_classes),
            )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(x, network="GhostNetV2", minimum=self.least)
        maps = tapped(self.stages, x, range(len(self.stages)))
        return maps if self.head is None else self.head(maps[-1])
