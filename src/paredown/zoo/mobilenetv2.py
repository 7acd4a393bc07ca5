"""MobileNetV2: inverted residuals, linear bottlenecks (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paredown.nn.conv import (
    Activation,
    ConvNormAct,
    classifier,
    he_init,
    relu6,
    round_channels,
)
from paredown.nn.features import before_halvings, tapped
from paredown.nn.inverted import InvertedResidual, Skip

# Table 2: expansion t, channels c, repeats n, stride s of the first block of the row.
ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

# Receptive field moved behind the stage that runs in patches (MCUNetV2, arXiv:2110.15352, section
# 3.2): one block less at stride 4, where each widens the tiles' overlap, one more at stride 8.
REDISTRIBUTED = (
    (1, 16, 1, 1),
    (6, 24, 1, 2),
    (6, 32, 4, 2),
    *ROWS[3:],
)


class MobileNetV2(nn.Module):
    """MobileNetV2 for ``(batch, in_channels, h, w)`` images, logits ``(batch, num_classes)``.

    ``width`` multiplies every channel count (rounded to multiples of 8); the last convolution is
    not shrunk below 1280 unless ``last`` says otherwise. ``rows`` replaces table 2; ``linear`` and
    ``skip`` give the paper's ablations (figure 6), ``act`` another activation. With
    ``features_only`` the output is a list: the map before each halving of the resolution, and the
    last (strides 2 to 32).
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        rows: Sequence[tuple[int, int, int, int]] = ROWS,
        stem: int = 32,
        stem_stride: int = 2,
        last: int | None = None,
        dropout: float = 0.2,
        linear: bool = True,
        skip: Skip = "thin",
        act: Activation = relu6,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        channels = round_channels(stem * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stride=stem_stride, act=act)
        blocks: list[nn.Module] = []
        strides: list[int] = []
        for expand, c, repeats, stride in rows:
            outputs = round_channels(c * width)
            for i in range(repeats):
                strides.append(stride if i == 0 else 1)
                blocks.append(
                    InvertedResidual(
                        channels,
                        outputs,
                        expand=expand,
                        stride=strides[-1],
                        linear=linear,
                        skip=skip,
                        act=act,
                    )
                )
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.taps = before_halvings(strides) if features_only else []
        if features_only:
            he_init(self)
            return
        features = last or round_channels(1280 * max(1.0, width))
        self.last = ConvNormAct(channels, features, act=act)
        self.head = classifier(features, num_classes, dropout=dropout)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the maps on the way."""
        if self.taps:
            return tapped(self.blocks, self.stem(x), self.taps)
        return self.head(self.last(self.blocks(self.stem(x))))
