"""H-DenseUNet: a deep 2-D U-Net sees slices, a light 3-D one joins them (Li et al. 2018).

arXiv:1709.07330, figure 2 and table 1; layout of the authors' Keras code. The hybrid's two branches
have no long skips there, the stand-alone 2-D network (DenseUNet-167) has.

Deviations: a batch norm and Keras's scale layer behind it are one batch norm here, with torch's
epsilon (1e-5 for 1.1e-5) in the encoders; the slices' batch norms train with the rest.

A 3-D network as deep as the 2-D one has 95M parameters where the hybrid has 61M; but at 224x224x8
it computes and holds less, as its stem halves the slices: 145 GMAC for 303, and 379 MiB of
activations at once for 499 (counted on shapes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.nn.conv import DenseBlock, he_init, relu
from paredown.nn.features import need_size, need_volume
from paredown.nn.segment import weighted_cross_entropy

WEIGHTS = (0.78, 0.65, 8.57)
"""Of background, liver and tumour in the loss (section IV-B; the code)."""
SCORES_GAIN = 250.0
"""The 2-D scores are brought to the range of Hounsfield units before they join the volume."""
DECODER_EPS = 1e-3


class DenseUNet(nn.Module):
    """A DenseNet encoder and five upsampling convolutions, in 2-D or (``dims`` 3) over volumes.

    In 3-D the transitions and the first three upsamplings leave the depth alone, so heights and
    widths are multiples of 32, depths of 4. ``decoder`` are the widths of the upsampling
    convolutions. With ``skips`` (2-D, sums; the deepest through a 1x1 convolution) the encoder's
    maps are added before each of the first four. Returns scores of the input's size; with
    ``features_only`` the encoder's maps (strides 2 to 32).
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 36, 24),
        num_classes: int = 3,
        in_channels: int = 3,
        *,
        growth: int = 48,
        stem: int = 96,
        decoder: Sequence[int] = (768, 384, 96, 96, 64),
        dims: int = 2,
        skips: bool = False,
        dropout: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        deep = dims == 3
        self.dims, self.width = dims, decoder[-1]
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if deep else (nn.Conv2d, nn.BatchNorm2d)
        self.stem = nn.Sequential(conv(in_channels, stem, 7, 2, 3, bias=False), norm(stem), relu())
        self.pool = nn.MaxPool3d(3, 2, 1) if deep else nn.MaxPool2d(3, 2, 1)
        flat = (1, 2, 2)
        channels, widths = stem, [stem]
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, layers in enumerate(blocks):
            block = DenseBlock(channels, growth, layers, dims=dims)
            self.blocks.append(block)
            channels = block.outputs
            widths.append(channels)
            if i < len(blocks) - 1:
                self.transitions.append(
                    nn.Sequential(
                        norm(channels),
                        relu(),
                        conv(channels, channels // 2, 1, bias=False),
                        nn.AvgPool3d(flat, flat) if deep else nn.AvgPool2d(2, 2),
                    )
                )
                channels //= 2
        self.norm = nn.Sequential(norm(channels), relu())
        self.head: nn.Module | None = None
        self.across = conv(widths[-2], channels, 1) if skips and not features_only else None
        if not features_only:
            self.up = nn.ModuleList()
            for i, width in enumerate(decoder):
                ahead = nn.Dropout(dropout) if dropout and i == len(decoder) - 1 else nn.Identity()
                self.up.append(
                    nn.Sequential(
                        conv(channels, width, 3, padding=1),
                        ahead,
                        norm(width, eps=DECODER_EPS),
                        relu(),
                    )
                )
                channels = width
            # The transitions' poolings are undone first, then the stem's two halvings.
            self.scales = [flat] * (len(blocks) - 1) + [(2, 2, 2)] * 2 if deep else [(2, 2)] * 5
            self.head = conv(channels, num_classes, 1)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images or volumes to scores, or to the encoder's maps."""
        if self.head is None:
            return self.encode(x)
        return self.head(self.decode(self.encode(x)))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The stem's map, every dense block's, the last one behind its norm."""
        if self.dims == 3:
            need_volume(x, network="this 3-D DenseUNet", multiple=(4, 32, 32), minimum=(4, 32, 32))
        else:
            need_size(x, network="DenseUNet", multiple=32, minimum=32)
        maps = [self.stem(x)]
        x = self.pool(maps[0])
        for i, block in enumerate(self.blocks):
            maps.append(block(x))
            x = self.transitions[i](maps[-1]) if i < len(self.transitions) else maps[-1]
        return [*maps[:-1], self.norm(x)]

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The features before the head, of the input's size."""
        x = maps[-1]
        for i, (scale, up) in enumerate(zip(self.scales, self.up, strict=True)):
            x = nn.functional.interpolate(x, scale_factor=tuple(map(float, scale)))
            if self.across is not None and i < len(maps) - 1:
                skip = maps[-2 - i]
                x = x + (self.across(skip) if i == 0 else skip)
            x = up(x)
        return x

    def features_and_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the hybrid takes of its slices: features before the head, and the head's scores."""
        assert self.head is not None
        features = self.decode(self.encode(x))
        return features, self.head(features)


class HDenseUNet(nn.Module):
    """The hybrid, for volumes ``(batch, in_channels, slices, h, w)``; scores of the same size.

    Slices are a multiple of 4, h and w of 32. Every slice with its neighbours goes through
    ``flat``; its scores, times 250, join the volume as input of ``solid``; both features are added
    and fused (HFF, section III-D). ``flat`` and ``solid`` take the place of the published
    networks; both end in as many channels, and ``solid`` loses its head. The loss is
    :func:`volume_loss`.
    """

    def __init__(
        self,
        num_classes: int = 3,
        in_channels: int = 1,
        *,
        flat: DenseUNet | None = None,
        solid: DenseUNet | None = None,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.flat = flat or DenseUNet(num_classes=num_classes, in_channels=3 * in_channels)
        self.solid = solid or DenseUNet(
            (3, 4, 12, 8),
            num_classes,
            in_channels + num_classes,
            growth=32,
            decoder=(504, 224, 192, 96, 64),
            dims=3,
        )
        # Its own scores are not asked for: only its features are fused.
        self.solid.head = nn.Identity()
        width = self.solid.width
        self.fuse = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1),
            nn.Dropout(dropout),
            nn.BatchNorm3d(width, eps=DECODER_EPS),
            relu(),
        )
        self.head = nn.Conv3d(width, num_classes, 1)
        he_init(self.fuse)
        he_init(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes to scores ``(batch, num_classes, slices, h, w)``."""
        need_volume(x, network="H-DenseUNet", multiple=(4, 32, 32), minimum=(4, 32, 32))
        batch = x.shape[0]
        features, scores = (
            to_volume(t, batch) for t in self.flat.features_and_scores(with_neighbours(x))
        )
        deep = self.solid.decode(self.solid.encode(torch.cat((x, SCORES_GAIN * scores), 1)))
        return self.head(self.fuse(deep + features))


def with_neighbours(x: Tensor) -> Tensor:
    """Every slice between its neighbours: ``(b, c, d, h, w)`` to ``(b * d, 3 * c, h, w)``.

    The first and the last slice stand in for the neighbour that they lack.
    """
    x = x.transpose(1, 2)
    before = torch.cat((x[:, :1], x[:, :-1]), 1)
    after = torch.cat((x[:, 1:], x[:, -1:]), 1)
    return torch.stack((before, x, after), 2).flatten(2, 3).flatten(0, 1)


def to_volume(x: Tensor, batch: int) -> Tensor:
    """Slices back in their volumes: ``(b * d, c, h, w)`` to ``(b, c, d, h, w)``."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def volume_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Weighted cross-entropy over all slices but the two ends, which see too little (the code).

    ``scores`` are ``(batch, 3, slices, h, w)``, ``targets`` class numbers of that shape less the
    classes.
    """
    return weighted_cross_entropy(scores[:, :, 1:-1], targets[:, 1:-1], WEIGHTS)


def denseunet167(num_classes: int = 3, in_channels: int = 3, **settings: Any) -> DenseUNet:
    """The stand-alone 2-D network, with long skips and dropout 0.3 before its last norm."""
    settings = {"dropout": 0.3, **settings}
    return DenseUNet((6, 12, 36, 24), num_classes, in_channels, skips=True, **settings)
