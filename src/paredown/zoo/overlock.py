"""OverLoCK: overview first, look closely next (Lou & Yu 2025, arXiv:2502.20087).

``paredown.nn.reparameterise`` merges the dilated branches; the paper's figures are of the merged
network without the auxiliary head. Deviation: while training, too, only the main head answers;
the auxiliary logits come from :meth:`OverLoCK.overview`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import gelu, silu
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size
from paredown.nn.init import small_init
from paredown.nn.norm import GlobalResponseNorm, LayerNorm2d
from paredown.nn.reparam import DilatedReparamConv, reparameterise
from paredown.nn.squeeze import SqueezeExcite
from paredown.zoo._contmix import ContMix

# The small branches beside a large kernel: taps and dilation (authors' code).
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
}


class Plan(NamedTuple):
    """One size: base depths, focus depths, widths, ContMix heads of the focus stages."""

    depths: tuple[int, int, int, int]
    focus: tuple[int, int]
    widths: tuple[int, int, int, int]
    heads: tuple[int, int]


VARIANTS: dict[str, Plan] = {
    "xt": Plan((2, 2, 3, 2), (6, 2), (56, 112, 256, 336), (4, 6)),
    "t": Plan((4, 4, 6, 2), (12, 2), (64, 128, 256, 512), (4, 8)),
    "s": Plan((6, 6, 8, 3), (16, 3), (64, 128, 320, 512), (8, 16)),
    "b": Plan((8, 8, 10, 4), (20, 4), (80, 160, 384, 576), (6, 9)),
}


class ResidualDepthwise(nn.Module):
    """``x`` plus its 3x3 depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.conv(x)


class Affine(nn.Module):
    """A learned scale and shift per channel, one and zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x * self.scale + self.shift


def large_kernel(channels: int, kernel: int) -> nn.Sequential:
    """A depthwise convolution with dilated branches beside it, and a batch norm."""
    if kernel not in BRANCHES:
        raise InputError(f"kernels are one of {sorted(BRANCHES)}, got {kernel}")
    conv = DilatedReparamConv(channels, kernel, BRANCHES[kernel])
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


def squeeze(channels: int) -> SqueezeExcite:
    """Squeeze-and-excitation to an eighth of the channels, 16 or more, GELU between."""
    return SqueezeExcite(channels, max(16, channels // 8), act=gelu)


def conv_mlp(channels: int, hidden: int) -> nn.Sequential:
    """1x1, GELU, depthwise residual, response norm, 1x1 back."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.GELU(),
        ResidualDepthwise(hidden),
        GlobalResponseNorm(hidden),
        nn.Conv2d(hidden, channels, 1),
    )


class BaseBlock(nn.Module):
    """Depthwise residual; norm, large kernel, SE and MLP on a (scaled) residual (figure 4b)."""

    def __init__(
        self, channels: int, kernel: int, *, ratio: int = 4, scaled: bool = True, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.near = ResidualDepthwise(channels)
        self.body = nn.Sequential(
            LayerNorm2d(channels, eps=1e-6),
            large_kernel(channels, kernel),
            squeeze(channels),
            conv_mlp(channels, ratio * channels),
        )
        self.skip = Affine(channels) if scaled else nn.Identity()
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        x = self.near(x)
        return self.skip(x) + self.drop(self.body(x))


class FocusBlock(nn.Module):
    """Features and context, mixed by ContMix under a gate, then an MLP over both (figure 4c).

    ``first`` takes the context as it is; later blocks re-mix it with the original one by learned
    scales.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        kernel: int,
        num_heads: int,
        *,
        ratio: int = 3,
        first: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        both = channels + context
        self.parts = (channels, context)
        self.carried = None if first else Affine(context)
        self.original = None if first else Affine(context)
        self.near1, self.norm1 = ResidualDepthwise(both), LayerNorm2d(both, eps=1e-6)
        self.fuse_in = nn.Sequential(
            nn.Conv2d(both, both, 3, padding=1, groups=both),
            nn.BatchNorm2d(both),
            nn.GELU(),
            nn.Conv2d(both, channels, 1),
            GlobalResponseNorm(channels),
        )
        self.mixer = ContMix(channels, context, num_heads, kernel)
        self.mixed = ConvNormAct(channels, channels, act=None)
        self.static = large_kernel(channels, kernel)
        self.squeeze = squeeze(channels)
        self.gate = ConvNormAct(channels, channels, act=silu)
        self.project = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, both, 1))
        self.skip1, self.skip2 = Affine(both), Affine(both)
        self.near2, self.norm2 = ResidualDepthwise(both), LayerNorm2d(both, eps=1e-6)
        self.mlp = conv_mlp(both, ratio * channels)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor, context: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
        """Features, carried and original context to new features and context."""
        if self.carried is not None and self.original is not None:
            context = self.carried(context) + self.original(original)
        both = self.near1(torch.cat((x, context), 1))
        normed = self.norm1(both)
        x = self.fuse_in(normed)
        local, seen = normed.split(self.parts, 1)
        mixed = self.mixed(self.mixer(x, local, seen)) + self.static(x)
        y = self.project(self.gate(x) * self.squeeze(mixed))
        both = self.near2(self.skip1(both) + self.drop(y))
        both = self.skip2(both) + self.drop(self.mlp(self.norm2(both)))
        out, context = both.split(self.parts, 1)
        return out, context


def stem(in_channels: int, width: int) -> nn.Sequential:
    """Four 3x3 convolutions, the first and third strided; the last has no activation."""
    half = width // 2
    return nn.Sequential(
        ConvNormAct(in_channels, half, 3, stride=2, act=gelu),
        ConvNormAct(half, half, 3, act=gelu),
        ConvNormAct(half, width, 3, stride=2, act=gelu),
        ConvNormAct(width, width, 3, act=None),
    )


def shrink(inputs: int, outputs: int) -> ConvNormAct:
    """A strided 3x3 convolution and a batch norm."""
    return ConvNormAct(inputs, outputs, 3, stride=2, act=None)


class OverLoCK(nn.Module):
    """OverLoCK for ``(batch, in_channels, h, w)`` images of any size.

    The base net runs to stride 16, the overview net to 32; its map, projected to a quarter, is the
    context with which the focus net reads strides 16 and 32. Returns logits ``(batch,
    num_classes)``, or with ``features_only`` the base net's first two stages and the focus net's
    two (strides 4 to 32). ``auxiliary`` adds the overview's head.
    """

    def __init__(
        self,
        plan: Plan = VARIANTS["xt"],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        kernels: Sequence[int] = (17, 15, 13, 7),
        ratio: int = 4,
        focus_ratio: int = 3,
        features: int = 1024,
        auxiliary: bool = True,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        widths, last = plan.widths, plan.widths[3]
        rates = iter(rising_rates(drop, sum(plan.depths) + sum(plan.focus)))
        self.base = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, plan.depths, strict=True)):
            entry = shrink(widths[i - 1], width) if i else stem(in_channels, width)
            blocks = (
                BaseBlock(width, kernels[i], ratio=ratio, scaled=i > 1, drop=next(rates))
                for _ in range(depth)
            )
            self.base.append(nn.Sequential(entry, *blocks))
        context = last // 4
        self.to_context = nn.Conv2d(last, context, 1)
        self.focus = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(plan.focus, plan.heads, strict=True)):
            self.focus.append(
                nn.ModuleList(
                    FocusBlock(
                        widths[2 + stage],
                        context,
                        kernels[2 + stage],
                        heads,
                        ratio=focus_ratio,
                        first=stage == 0 and i == 0,
                        drop=next(rates),
                    )
                    for i in range(depth)
                )
            )
        self.shrink_x, self.shrink_context = shrink(widths[2], last), shrink(context, context)
        self.head = self.auxiliary = None
        if not features_only:
            self.head = nn.Sequential(
                ConvNormAct(last + context, features, act=silu),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(1),
                nn.Linear(features, num_classes),
            )
            if auxiliary:
                self.auxiliary = nn.Sequential(
                    nn.BatchNorm2d(last),
                    nn.AdaptiveAvgPool2d(1),
                    nn.Flatten(1),
                    nn.Linear(last, num_classes),
                )
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to features."""
        maps, _ = self._run(x)
        return maps if self.head is None else self.head(maps[-1])

    def overview(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the main and of the auxiliary head, for training (section 3.1)."""
        if self.head is None or self.auxiliary is None:
            raise InputError("this OverLoCK was built without an auxiliary head")
        maps, seen = self._run(x)
        return self.head(maps[-1]), self.auxiliary(seen)

    def _run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        need_size(x, network="OverLoCK")
        maps: list[Tensor] = []
        for stage in self.base[:2]:
            x = stage(x)
            maps.append(x)
        x = self.base[2](x)
        seen = self.base[3](x)
        small = self.to_context(seen)
        original = F.interpolate(small, size=x.shape[2:], mode="bilinear")
        context = original
        for block in self.focus[0].children():
            x, context = block(x, context, original)
        maps.append(torch.cat((x, context), 1))
        x, context = self.shrink_x(x), self.shrink_context(context)
        for block in self.focus[1].children():
            x, context = block(x, context, small)
        maps.append(torch.cat((x, context), 1))
        return maps, seen


def overlock(
    variant: str = "xt",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    merged: bool = False,
    auxiliary: bool = True,
    drop: float = 0.0,
    features_only: bool = False,
) -> nn.Module:
    """A published size: xt, t, s or b; ``merged``: to run only, without the auxiliary head.

    Raises ``UnknownName`` for another.
    """
    if variant not in VARIANTS:
        raise UnknownName("OverLoCK", variant, list(VARIANTS))
    net = OverLoCK(
        VARIANTS[variant],
        num_classes,
        in_channels,
        auxiliary=auxiliary and not merged,
        drop=drop,
        features_only=features_only,
    )
    return reparameterise(net) if merged else net
