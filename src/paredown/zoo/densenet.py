"""DenseNet-BC: densely connected convolutional networks (Huang et al. 2017, arXiv:1608.06993)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paredown.nn.conv import DenseBlock, classifier, he_init, relu


class DenseNet(nn.Module):
    """DenseNet-BC for ``(batch, in_channels, h, w)`` images; defaults are DenseNet-121.

    ``blocks`` are the layers per dense block; transitions halve channels and resolution.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 24, 16),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        growth: int = 32,
        bottleneck: int = 4,
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
        self.head = classifier(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.act(self.norm(self.body(self.stem(x)))))


def transition(inputs: int, outputs: int) -> nn.Sequential:
    """Norm, ReLU, 1x1 convolution, 2x2 average pool: between two dense blocks."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        relu(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.AvgPool2d(2, 2),
    )
