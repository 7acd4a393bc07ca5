"""ConvNeXt: a ConvNet for the 2020s (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.convnext import ConvNeXtBlock
from paredown.nn.drop import rising_rates
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.norm import LayerNorm2d

# Depths and widths (section 3).
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


class ConvNeXt(nn.Module):
    """ConvNeXt for ``(batch, in_channels, h, w)`` images of sides 32 or more; ConvNeXt-T.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32). ``patch`` is the stem's kernel and stride, ``scale`` the initial layer scale,
    ``drop`` the last block's rate of stochastic depth.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        patch: int = 4,
        scale: float = 1e-6,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], patch, patch), LayerNorm2d(widths[0], eps=1e-6)
        )
        self.least = patch * 2 ** (len(depths) - 1)
        rates = iter(rising_rates(drop, sum(depths)))
        body: list[nn.Module] = []
        self.taps: list[int] = []
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if i:
                body += [
                    LayerNorm2d(widths[i - 1], eps=1e-6),
                    nn.Conv2d(widths[i - 1], width, 2, 2),
                ]
            body += [ConvNeXtBlock(width, scale=scale, drop=next(rates)) for _ in range(depth)]
            self.taps.append(len(body) - 1)
        self.body = nn.Sequential(*body)
        self.head = None
        if not features_only:
            self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
            self.head = nn.Linear(widths[-1], num_classes)
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        need_size(x, network="ConvNeXt", minimum=self.least)
        if self.head is None:
            return tapped(self.body, self.stem(x), self.taps)
        return self.head(self.norm(self.body(self.stem(x)).mean((2, 3))))


def convnext(
    variant: str = "tiny", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> ConvNeXt:
    """A published variant: tiny, small, base or large. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("ConvNeXt", variant, list(VARIANTS))
    depths, widths = VARIANTS[variant]
    return ConvNeXt(depths, widths, num_classes, in_channels, **settings)
