"""ConvFirst: blocks made to be fused (Lavin 2024, "On the Efficiency of CNNs", arXiv:2404.03617).

A grouped 3x3 convolution on the thin tensor comes first, then two 1x1 convolutions widen and narrow
it, so a tile of the output needs a halo of the thin input alone. Block and benchmark shapes are as
in the author's later kernel package (andravin/spio).

Deviation: the stage layout of ConvFirstNet could not be read. Ours follows the package's benchmark
shapes: 64 channels at a quarter of the resolution in ConvFirst blocks, 256 at a sixteenth in MBConv
blocks, doubling from stage to stage; depths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation, silu
from paredown.nn.conv import ConvNormAct, classifier, he_init
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import tapped
from paredown.nn.inverted import InvertedResidual
from paredown.nn.reparam import fold_norm

WIDTHS = (64, 128, 256, 512)
DEPTHS = (2, 2, 6, 2)


class ConvFirstBlock(nn.Module):
    """Grouped 3x3 and its norm, 1x1 to ``expand`` times the width, SiLU, 1x1 back; a thin skip.

    Groups read ``group_size`` channels each. No activation stands behind the 3x3. Raises
    ``InputError`` where the groups do not divide the channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expand: int = 4,
        stride: int = 1,
        group_size: int = 8,
        act: Activation = silu,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if inputs % group_size:
            raise InputError(f"groups of {group_size} channels do not divide {inputs}")
        groups = inputs // group_size
        self.near = ConvNormAct(inputs, inputs, 3, stride=stride, groups=groups, act=None)
        self.widen = ConvNormAct(inputs, expand * inputs, act=act)
        self.narrow = ConvNormAct(expand * inputs, outputs, act=None)
        self.drop = drop_path(drop)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        out = self.narrow(self.widen(self.near(x)))
        return x + self.drop(out) if self.skips else out

    @torch.no_grad()
    def in_slices(self, x: Tensor, slices: int) -> Tensor:
        """The same in evaluation mode, over ``slices`` groups of the wide channels, one at a time.

        The projection is a sum over the wide channels, which never exist whole: what a fused kernel
        does. Raises ``InputError`` for more slices than wide channels.
        """
        convs: list[tuple[Tensor, Tensor]] = []
        for part in (self.widen, self.narrow):
            norm = part.norm
            assert isinstance(norm, nn.BatchNorm2d)
            convs.append(fold_norm(part.conv.weight, part.conv.bias, norm))
        (wide, wide_bias), (thin, thin_bias) = convs
        if slices > len(wide):
            raise InputError(f"{slices} slices of {len(wide)} channels: use at most {len(wide)}")
        near, out = self.near(x), thin_bias[:, None, None]
        for pick in torch.arange(len(wide)).tensor_split(slices):
            inner = self.widen.act(F.conv2d(near, wide[pick], wide_bias[pick]))
            out = out + F.conv2d(inner, thin[:, pick])
        return x + out if self.skips else out


class ConvFirstNet(nn.Module):
    """A network of ConvFirst and MBConv stages for ``(batch, in_channels, h, w)`` images.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages
    (strides 4 to 32). The first half of the stages have ConvFirst blocks, the others MBConv blocks
    of the same expansion.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = DEPTHS,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        expand: int = 4,
        group_size: int = 8,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        rates = iter(rising_rates(drop, sum(depths)))
        first = max(widths[0] // 2, group_size)
        self.stem = ConvNormAct(in_channels, first, 3, stride=2, act=silu)
        before, stages = first, list[nn.Module]()
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage: list[nn.Module] = []
            for k in range(depth):
                stride, rate = 2 if k == 0 else 1, next(rates)
                stage.append(
                    ConvFirstBlock(
                        before, width, expand=expand, stride=stride, group_size=group_size,
                        drop=rate,
                    )
                    if i < len(widths) // 2
                    else InvertedResidual(
                        before, width, expand=expand, stride=stride, act=silu, drop=rate
                    )
                )  # fmt: skip
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.head = None if features_only else classifier(before, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        maps = tapped(self.stages, self.stem(x), range(len(self.stages)))
        return maps if self.head is None else self.head(maps[-1])
