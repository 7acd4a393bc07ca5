"""3-D U-Net of reversible mobile inverted bottlenecks (Pendse et al. 2021, arXiv:2104.09648).

Every level of encoder and decoder is a chain of reversible blocks (section 2): the two halves of
the channels update each other through inverted bottlenecks, and the backward pass recomputes a
level's inputs from its outputs. Activations stored do not grow with the blocks of a level.

Choices of ours, as no code is public and the abstract gives no table: 4 levels, width 24 doubling,
2 blocks a level, expansion 4, group norms of 8 groups, ReLU, strided 3x3x3 convolutions down,
trilinear upsampling, skips concatenated and mixed by a 1x1x1 convolution.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation, relu
from paredown.nn.conv import he_init
from paredown.nn.features import need_volume
from paredown.nn.reversible import ReversibleBlock, ReversibleSequence

GROUPS = 8
"""Groups of a group norm, or the most that divide both this and the channels."""


def group_norm(channels: int) -> nn.GroupNorm:
    """A group norm of `GROUPS` groups where they divide the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


class MBConv3d(nn.Sequential):
    """Inverted bottleneck in 3-D: 1x1x1 up, 3x3x3 depthwise, linear 1x1x1 down; no skip of its own.

    The wide tensors, ``expand`` times the channels, live inside it only.
    """

    def __init__(self, channels: int, *, expand: float = 4, act: Activation = relu) -> None:
        wide = round(channels * expand)
        super().__init__(
            nn.Conv3d(channels, wide, 1, bias=False),
            group_norm(wide),
            act(),
            nn.Conv3d(wide, wide, 3, padding=1, groups=wide, bias=False),
            group_norm(wide),
            act(),
            nn.Conv3d(wide, channels, 1),
        )


class RevMBConvUNet3d(nn.Module):
    """For volumes ``(batch, in_channels, d, h, w)`` of any size; scores of the same size.

    ``num_classes`` scores per voxel are logits of nested classes (whole tumour, core, enhancing),
    each with its own sigmoid; :func:`paredown.nn.segment.dice_cross_entropy` is the loss.
    ``width`` doubles at each of ``levels - 1`` halvings, ``blocks`` are the reversible blocks of a
    level. With ``reversible=False`` the same network stores its activations: the twin that the
    paper compares with. ``features_only`` gives the encoder's maps (strides 1 to 8). Raises
    ``InputError`` for an odd width and for inputs that are not volumes.
    """

    def __init__(
        self,
        num_classes: int = 3,
        in_channels: int = 4,
        *,
        width: int = 24,
        levels: int = 4,
        blocks: int = 2,
        expand: float = 4,
        reversible: bool = True,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if width % 2:
            raise InputError(f"reversible blocks halve the channels: width is even, got {width}")

        def stage(channels: int) -> ReversibleSequence:
            half = channels // 2
            return ReversibleSequence(
                (
                    ReversibleBlock(MBConv3d(half, expand=expand), MBConv3d(half, expand=expand))
                    for _ in range(blocks)
                ),
                store=not reversible,
            )

        widths = [width * 2**i for i in range(levels)]
        ends = [in_channels, *widths]
        self.enter = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(ends[i], ends[i + 1], 3, 2 if i else 1, 1, bias=False),
                group_norm(ends[i + 1]),
                relu(),
            )
            for i in range(levels)
        )
        self.down = nn.ModuleList(stage(c) for c in widths)
        self.head = None
        if not features_only:
            back = widths[-2::-1]
            self.reduce = nn.ModuleList(nn.Conv3d(2 * c, c, 1) for c in back)
            self.mix = nn.ModuleList(nn.Conv3d(2 * c, c, 1) for c in back)
            self.up = nn.ModuleList(stage(c) for c in back)
            self.head = nn.Conv3d(width, num_classes, 1)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Volumes to scores per voxel, or to the encoder's maps."""
        need_volume(x, network="this U-Net")
        maps: list[Tensor] = []
        for enter, stage in zip(self.enter, self.down, strict=True):
            x = stage(enter(x))
            maps.append(x)
        if self.head is None:
            return maps
        ways = zip(self.reduce, self.mix, self.up, reversed(maps[:-1]), strict=True)
        for reduce, mix, stage, across in ways:
            x = F.interpolate(reduce(x), across.shape[2:], mode="trilinear", align_corners=False)
            x = stage(mix(torch.cat((across, x), 1)))
        return self.head(x)
