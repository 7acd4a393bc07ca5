"""InceptionNeXt: when Inception meets ConvNeXt (Yu et al. 2023, arXiv:2303.16900)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.mlp import ConvMlp
from paredown.nn.norm import LayerScale

# Depths, widths, MLP ratios, share of channels per band, band length (section 4.1, table 2; Atto is
# the authors' later release).
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], float, int]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320), (4, 4, 4, 3), 0.25, 9),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), (4, 4, 4, 3), 0.125, 11),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), (4, 4, 4, 3), 0.125, 11),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), (4, 4, 4, 3), 0.125, 11),
}


class InceptionDepthwise(nn.Module):
    """Depthwise convolution in four branches of channels: identity, square, row and column band.

    ``share`` of the channels (rounded down) goes to each of the three convolutions, the rest
    passes (section 3.2, equations 4 to 6).
    """

    def __init__(
        self, channels: int, *, square: int = 3, band: int = 11, share: float = 0.125
    ) -> None:
        super().__init__()
        part = int(channels * share)
        if part < 1 or 3 * part > channels:
            raise InputError(
                f"share {share} of {channels} channels leaves {part} for each of three branches"
            )
        self.parts = (channels - 3 * part, part, part, part)
        self.square = nn.Conv2d(part, part, square, padding=square // 2, groups=part)
        self.row = nn.Conv2d(part, part, (1, band), padding=(0, band // 2), groups=part)
        self.column = nn.Conv2d(part, part, (band, 1), padding=(band // 2, 0), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        kept, square, row, column = x.split(self.parts, dim=1)
        return torch.cat((kept, self.square(square), self.row(row), self.column(column)), dim=1)

    def dense(self) -> nn.Conv2d:
        """The same map as one depthwise convolution whose kernels are padded with zeros."""
        channels = sum(self.parts)
        side = self.row.kernel_size[1]
        whole = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels)
        with torch.no_grad():
            whole.weight.zero_()
            assert whole.bias is not None
            whole.bias.zero_()
            whole.weight[: self.parts[0], 0, side // 2, side // 2] = 1.0
            at = self.parts[0]
            for conv in (self.square, self.row, self.column):
                rows, columns = conv.kernel_size
                top, left, end = (side - rows) // 2, (side - columns) // 2, at + conv.out_channels
                whole.weight[at:end, :, top : top + rows, left : left + columns] = conv.weight
                assert conv.bias is not None
                whole.bias[at:end] = conv.bias
                at = end
        return whole


class MetaNeXtBlock(nn.Module):
    """Token mixer, batch norm, MLP of 1x1 convolutions, layer scale, one residual (equation 1)."""

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 4,
        share: float = 0.125,
        band: int = 11,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer = InceptionDepthwise(channels, band=band, share=share)
        self.norm = nn.BatchNorm2d(channels)
        self.mlp = ConvMlp(channels, int(channels * ratio))
        self.scale, self.drop = LayerScale(channels, dim=1), drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.drop(self.scale(self.mlp(self.norm(self.mixer(x)))))


class InceptionNeXt(nn.Module):
    """InceptionNeXt for ``(batch, in_channels, h, w)`` images of sides 32 or more.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the four
    stages (strides 4 to 32). ``share`` of the channels goes to each convolution branch; ``drop``
    is the last block's rate of stochastic depth.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        ratios: Sequence[float] = (4, 4, 4, 3),
        share: float = 0.125,
        band: int = 11,
        patch: int = 4,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.least = patch * 2 ** (len(depths) - 1)
        rates = iter(rising_rates(drop, sum(depths)))
        stages: list[nn.Module] = []
        for i, (depth, width, ratio) in enumerate(zip(depths, widths, ratios, strict=True)):
            entry: list[nn.Module] = (
                [nn.BatchNorm2d(widths[i - 1]), nn.Conv2d(widths[i - 1], width, 2, 2)]
                if i
                else [nn.Conv2d(in_channels, width, patch, patch), nn.BatchNorm2d(width)]
            )
            blocks = (
                MetaNeXtBlock(width, ratio=ratio, share=share, band=band, drop=next(rates))
                for _ in range(depth)
            )
            stages.append(nn.Sequential(*entry, *blocks))
        self.stages = nn.ModuleList(stages)
        last = widths[-1]
        self.head = None
        if not features_only:
            self.head = nn.Sequential(
                nn.Linear(last, 3 * last),
                nn.GELU(),
                nn.LayerNorm(3 * last, eps=1e-6),
                nn.Linear(3 * last, num_classes),
            )
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(x, network="InceptionNeXt", minimum=self.least)
        features = tapped(self.stages, x, range(len(self.stages)))
        return features if self.head is None else self.head(features[-1].mean((2, 3)))


def inceptionnext(
    variant: str = "tiny",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    features_only: bool = False,
) -> InceptionNeXt:
    """A published size: atto, tiny, small or base. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("InceptionNeXt", variant, list(VARIANTS))
    depths, widths, ratios, share, band = VARIANTS[variant]
    return InceptionNeXt(
        depths,
        widths,
        num_classes,
        in_channels,
        ratios=ratios,
        share=share,
        band=band,
        features_only=features_only,
    )
