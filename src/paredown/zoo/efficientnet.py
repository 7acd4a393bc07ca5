"""EfficientNet: compound scaling of MBConv blocks (Tan & Le 2019, arXiv:1905.11946, table 1).

Squeeze-excite is a quarter of a block's input width. ``eps`` 1e-5 is that of the public PyTorch
weights; the authors' TensorFlow code has 1e-3.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.act import silu
from paredown.nn.conv import ConvNormAct, classifier, he_init, round_channels
from paredown.nn.drop import rising_rates
from paredown.nn.features import before_halvings, tapped
from paredown.nn.inverted import InvertedResidual
from paredown.nn.squeeze import SqueezeExcite

# Expansion, kernel, outputs, repeats, stride of the first block of the row.
ROWS = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
# Width, depth, dropout; the image sizes are those of the zoo's table.
VARIANTS: dict[str, tuple[float, float, float]] = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
}


class EfficientNet(nn.Module):
    """EfficientNet for ``(batch, in_channels, h, w)`` images of any size; defaults are B0.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the map before each halving
    and the last (strides 2 to 32). ``width`` and ``depth`` are the factors of section 3.3; ``drop``
    is the last block's rate of stochastic depth.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        dropout: float = 0.2,
        drop: float = 0.0,
        eps: float = 1e-5,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        self.stem = ConvNormAct(in_channels, channels, 3, stride=2, act=silu, eps=eps)
        repeats = [math.ceil(n * depth) for _, _, _, n, _ in ROWS]
        rates = iter(rising_rates(drop, sum(repeats)))
        blocks: list[nn.Module] = []
        strides: list[int] = []
        for (expand, kernel, c, _, first), count in zip(ROWS, repeats, strict=True):
            outputs = round_channels(c * width)
            for i in range(count):
                strides.append(first if i == 0 else 1)
                blocks.append(
                    InvertedResidual(
                        channels,
                        outputs,
                        expand=expand,
                        kernel=kernel,
                        stride=strides[-1],
                        squeeze=SqueezeExcite(channels * expand, max(1, channels // 4), act=silu),
                        act=silu,
                        eps=eps,
                        drop=next(rates),
                    )
                )
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.taps = before_halvings(strides)
        self.head = None
        if not features_only:
            last = round_channels(1280 * width)
            self.last = ConvNormAct(channels, last, act=silu, eps=eps)
            self.head = classifier(last, num_classes, dropout=dropout)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the maps on the way."""
        if self.head is None:
            return tapped(self.blocks, self.stem(x), self.taps)
        return self.head(self.last(self.blocks(self.stem(x))))


def efficientnet(
    variant: str = "b0", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> EfficientNet:
    """A published variant, b0 to b4. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("EfficientNet", variant, list(VARIANTS))
    width, depth, dropout = VARIANTS[variant]
    settings = {"dropout": dropout, **settings}
    return EfficientNet(width, depth, num_classes, in_channels, **settings)
