"""ResNet: deep residual learning (He et al. 2016, arXiv:1512.03385), stride on the 3x3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.conv import BasicBlock, Bottleneck, ConvNormAct, classifier, he_init
from paredown.nn.features import tapped

# Layers -> blocks per stage, bottleneck blocks or not (table 1).
DEPTHS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ResNet(nn.Module):
    """ResNet for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32). ``blocks`` per stage, ``width`` of the first stage (it doubles every stage);
    bottleneck blocks put out four times that. With ``groups`` the 3x3 convolution of a bottleneck
    has that many groups of ``group_width`` channels in the first stage (ResNeXt). ``block`` stands
    in place of the bottleneck block: ``block(inputs, inner, outputs, stride=...)``.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: int = 64,
        bottleneck: bool = False,
        groups: int = 1,
        group_width: int | None = None,
        block: Callable[..., nn.Module] | None = None,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, width, 7, stride=2), nn.MaxPool2d(3, 2, 1)
        )
        wide = block or partial(Bottleneck, groups=groups)
        channels, built = width, []
        for i, depth in enumerate(blocks):
            inner = (width if group_width is None else groups * group_width) * 2**i
            outputs = width * 2**i * (4 if bottleneck else 1)
            stage: list[nn.Module] = []
            for j in range(depth):
                stride = 2 if i and j == 0 else 1
                stage.append(
                    wide(channels, inner, outputs, stride=stride)
                    if bottleneck
                    else BasicBlock(channels, outputs, stride=stride)
                )
                channels = outputs
            built.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*built)
        self.head = None if features_only else classifier(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        if self.head is None:
            return tapped(self.stages, self.stem(x), range(len(self.stages)))
        return self.head(self.stages(self.stem(x)))


def resnet(
    layers: int = 50, num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> ResNet:
    """A published depth: 18, 34, 50, 101 or 152. Raises ``UnknownName`` for another."""
    if layers not in DEPTHS:
        raise UnknownName("ResNet", str(layers), [str(d) for d in DEPTHS])
    blocks, bottleneck = DEPTHS[layers]
    return ResNet(blocks, num_classes, in_channels, bottleneck=bottleneck, **settings)
