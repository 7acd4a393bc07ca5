"""DenseNet-BC: densely connected convolutional networks (Huang et al. 2017, arXiv:1608.06993)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.conv import DenseBlock, classifier, he_init, relu
from paredown.nn.features import need_size, tapped

# Layers -> layers per dense block, growth (table 1; 161 is the authors' released wide one).
VARIANTS: dict[int, tuple[tuple[int, ...], int]] = {
    121: ((6, 12, 24, 16), 32),
    161: ((6, 12, 36, 24), 48),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
}


class DenseNet(nn.Module):
    """DenseNet-BC for ``(batch, in_channels, h, w)`` images; defaults are DenseNet-121.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the dense
    blocks (strides 4 to 32). ``blocks`` are the layers per dense block; transitions halve channels
    and resolution, so the images need 29 pixels or more a side (for four blocks).
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 24, 16),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        growth: int = 32,
        bottleneck: int = 4,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            relu(),
            nn.MaxPool2d(3, 2, 1),
        )
        body: list[nn.Module] = []
        for i, layers in enumerate(blocks):
            block = DenseBlock(channels, growth, layers, bottleneck)
            body.append(block)
            channels = block.outputs
            if i < len(blocks) - 1:
                body.append(transition(channels, channels // 2))
                channels //= 2
        self.body = nn.Sequential(*body)
        self.norm, self.act = nn.BatchNorm2d(channels), relu()
        self.head = None if features_only else classifier(channels, num_classes)
        # The stem rounds up twice, every transition rounds down.
        self.least = 4 * 2 ** (len(blocks) - 1) - 3
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the dense blocks' outputs."""
        need_size(x, network="DenseNet", minimum=self.least)
        if self.head is None:
            return tapped(self.body, self.stem(x), range(0, len(self.body), 2))
        return self.head(self.act(self.norm(self.body(self.stem(x)))))


def densenet(
    layers: int = 121, num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> DenseNet:
    """A published depth: 121, 161, 169 or 201. Raises ``UnknownName`` for another."""
    if layers not in VARIANTS:
        raise UnknownName("DenseNet", str(layers), [str(v) for v in VARIANTS])
    blocks, growth = VARIANTS[layers]
    return DenseNet(blocks, num_classes, in_channels, growth=growth, **settings)


def transition(inputs: int, outputs: int) -> nn.Sequential:
    """Norm, ReLU, 1x1 convolution, 2x2 average pool: between two dense blocks."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        relu(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.AvgPool2d(2, 2),
    )
