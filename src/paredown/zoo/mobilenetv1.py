"""MobileNet: depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861, table 1).

ReLU6 as in the authors' released code; the paper's text says ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paredown.nn.act import Activation, relu6
from paredown.nn.conv import ConvNormAct, classifier, he_init, round_channels
from paredown.nn.features import before_halvings, tapped

# Output channels and stride of each separable convolution.
ROWS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


def separable(inputs: int, outputs: int, stride: int, act: Activation) -> nn.Sequential:
    """Depthwise 3x3, then 1x1, each with norm and activation (section 3.1)."""
    return nn.Sequential(
        ConvNormAct(inputs, inputs, 3, stride=stride, groups=inputs, act=act),
        ConvNormAct(inputs, outputs, act=act),
    )


class MobileNetV1(nn.Module):
    """MobileNet for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the map before each halving
    and the last (strides 2 to 32). ``width`` multiplies every channel count (section 3.3).
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        rows: Sequence[tuple[int, int]] = ROWS,
        stem: int = 32,
        act: Activation = relu6,
        dropout: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        channels = round_channels(stem * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stride=2, act=act)
        blocks: list[nn.Module] = []
        for c, stride in rows:
            outputs = round_channels(c * width)
            blocks.append(separable(channels, outputs, stride, act))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.taps = before_halvings([s for _, s in rows])
        self.head = None if features_only else classifier(channels, num_classes, dropout=dropout)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the maps on the way."""
        if self.head is None:
            return tapped(self.blocks, self.stem(x), self.taps)
        return self.head(self.blocks(self.stem(x)))
