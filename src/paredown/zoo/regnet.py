"""RegNetX: linear widths, group convolution (Radosavovic et al. 2020, arXiv:2003.13678)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.conv import Bottleneck, ConvNormAct, classifier, he_init
from paredown.nn.features import tapped

# Stage depths, stage widths, group width.
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "200mf": ((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "400mf": ((1, 2, 7, 12), (32, 64, 160, 384), 16),
}


class RegNetX(nn.Module):
    """RegNetX for ``(batch, in_channels, h, w)`` images of any size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32). Every stage halves the resolution; blocks are 1x1, grouped 3x3, 1x1 of one
    width. Raises ``InputError`` where a width is no multiple of the group width.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        group_width: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stem: int = 32,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        for w in widths:
            if w % group_width:
                raise InputError(f"width {w} is no multiple of the group width {group_width}")
        self.stem = ConvNormAct(in_channels, stem, 3, stride=2)
        channels, built = stem, []
        for depth, width in zip(depths, widths, strict=True):
            stage: list[nn.Module] = []
            for j in range(depth):
                stage.append(
                    Bottleneck(
                        channels,
                        width,
                        width,
                        stride=2 if j == 0 else 1,
                        groups=width // group_width,
                    )
                )
                channels = width
            built.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*built)
        self.head = None if features_only else classifier(channels, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        if self.head is None:
            return tapped(self.stages, self.stem(x), range(len(self.stages)))
        return self.head(self.stages(self.stem(x)))


def regnetx(
    variant: str = "400mf", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> RegNetX:
    """A published variant: 200mf or 400mf. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("RegNetX", variant, list(VARIANTS))
    depths, widths, group_width = VARIANTS[variant]
    return RegNetX(depths, widths, group_width, num_classes, in_channels, **settings)
