"""VoVNet: one-shot aggregation (Lee et al. 2019, arXiv:1904.09730, table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.conv import ConvNormAct, OneShotAggregation, classifier, he_init
from paredown.nn.features import need_size, tapped

# Per stage: width of the 3x3 chain, output channels, number of OSA modules.
STAGES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "27-slim": ((64, 128, 1), (80, 256, 1), (96, 384, 1), (112, 512, 1)),
    "39": ((128, 256, 1), (160, 512, 1), (192, 768, 2), (224, 1024, 2)),
    "57": ((128, 256, 1), (160, 512, 1), (192, 768, 4), (224, 1024, 3)),
}


class VoVNet(nn.Module):
    """VoVNet for ``(batch, in_channels, h, w)`` images that leave a pixel for every pool.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32).
    ``stages`` are ``(width, outputs, modules)``; each stage but the first begins with a 3x3
    max-pool of stride 2. ``stem`` are the widths of the three first convolutions, strides 2, 1 and
    2 (the released code; the paper's table has 1 in the third).
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int]],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stem: tuple[int, int, int] = (64, 64, 128),
        layers: int = 5,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, stem[0], 3, stride=2),
            ConvNormAct(stem[0], stem[1], 3),
            ConvNormAct(stem[1], stem[2], 3, stride=2),
        )
        # A pool of three pixels needs two to put out one; the stem halves twice, rounding up.
        self.least = 4 * (2 ** (len(stages) - 1) - 1) + 1
        channels, built = stem[2], []
        for i, (width, outputs, modules) in enumerate(stages):
            stage: list[nn.Module] = [nn.MaxPool2d(3, 2, ceil_mode=True)] if i else []
            for _ in range(modules):
                stage.append(OneShotAggregation(channels, width, outputs, layers=layers))
                channels = outputs
            built.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*built)
        self.head = None if features_only else classifier(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        need_size(x, network="VoVNet", minimum=self.least)
        if self.head is None:
            return tapped(self.stages, self.stem(x), range(len(self.stages)))
        return self.head(self.stages(self.stem(x)))


def vovnet(
    variant: str = "39", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> VoVNet:
    """A published variant: 27-slim, 39 or 57. Raises ``UnknownName`` for another."""
    if variant not in STAGES:
        raise UnknownName("VoVNet", variant, list(STAGES))
    return VoVNet(STAGES[variant], num_classes, in_channels, **settings)
