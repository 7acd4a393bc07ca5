"""ResNeXt: aggregated residual transformations (Xie et al. 2017, arXiv:1611.05431).

A ResNet whose bottlenecks are ``groups`` parallel paths, written as one grouped convolution
(figure 3c).
"""

from __future__ import annotations

from typing import Any

from paredown.errors import UnknownName
from paredown.zoo.resnet import DEPTHS, ResNet

# Layers, groups (the paper's cardinality), channels per group in the first stage.
VARIANTS: dict[str, tuple[int, int, int]] = {
    "50-32x4d": (50, 32, 4),
    "101-32x4d": (101, 32, 4),
    "101-32x8d": (101, 32, 8),
    "101-64x4d": (101, 64, 4),
}


def resnext(
    variant: str = "50-32x4d", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> ResNet:
    """A published variant, as 50-32x4d: 50 layers, 32 groups of 4 channels (``UnknownName``)."""
    if variant not in VARIANTS:
        raise UnknownName("ResNeXt", variant, list(VARIANTS))
    layers, groups, group_width = VARIANTS[variant]
    blocks, _ = DEPTHS[layers]
    return ResNet(
        blocks,
        num_classes,
        in_channels,
        bottleneck=True,
        groups=groups,
        group_width=group_width,
        **settings,
    )
