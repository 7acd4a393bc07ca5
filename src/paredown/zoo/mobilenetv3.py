"""MobileNetV3: hard swish, squeeze-excite, a cheap last stage (Howard et al. 2019, 1905.02244).

Batch norms have epsilon 0.001, as the authors'; squeeze-excite is a quarter of the inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.act import hard_sigmoid, hard_swish, relu
from paredown.nn.conv import ConvNormAct, he_init, round_channels
from paredown.nn.features import before_halvings, tapped
from paredown.nn.inverted import InvertedResidual
from paredown.nn.squeeze import SqueezeExcite

Row = tuple[int, int, int, bool, bool, int]

# Tables 1 and 2: depthwise kernel, inner width, outputs, squeeze-excite, hard swish, stride.
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
# Rows, channels of the last convolution and of the layer before the classifier.
VARIANTS: dict[str, tuple[tuple[Row, ...], int, int]] = {
    "large": (LARGE, 960, 1280),
    "small": (SMALL, 576, 1024),
}
EPS = 1e-3


class MobileNetV3(nn.Module):
    """MobileNetV3 for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the map before each halving
    and the last (strides 2 to 32). ``width`` multiplies the channels of the blocks, and the layer
    before the classifier where it is above 1. Raises ``UnknownName`` for a variant other than
    large and small.
    """

    def __init__(
        self,
        variant: str = "large",
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: float = 1.0,
        dropout: float = 0.2,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UnknownName("MobileNetV3", variant, list(VARIANTS))
        rows, last, features = VARIANTS[variant]
        channels = round_channels(16 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stride=2, act=hard_swish, eps=EPS)
        blocks: list[nn.Module] = []
        for kernel, inner, c, squeeze, swish, stride in rows:
            inner, outputs = round_channels(inner * width), round_channels(c * width)
            gate = (
                SqueezeExcite(inner, round_channels(inner / 4), gate=hard_sigmoid)
                if squeeze
                else None
            )
            blocks.append(
                InvertedResidual(
                    channels,
                    outputs,
                    inner=inner,
                    kernel=kernel,
                    stride=stride,
                    squeeze=gate,
                    act=hard_swish if swish else relu,
                    eps=EPS,
                )
            )
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.taps = before_halvings([r[-1] for r in rows])
        self.head = None
        if not features_only:
            wide, hidden = round_channels(last * width), round_channels(features * max(1.0, width))
            self.last = ConvNormAct(channels, wide, act=hard_swish, eps=EPS)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(1),
                nn.Linear(wide, hidden),
                hard_swish(),
                nn.Dropout(dropout),
                nn.Linear(hidden, num_classes),
            )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the maps on the way."""
        if self.head is None:
            return tapped(self.blocks, self.stem(x), self.taps)
        return self.head(self.last(self.blocks(self.stem(x))))
