"""MAXIM: multi-axis MLPs that restore images (Tu et al. 2022, arXiv:2201.02973).

A U-Net, or several chained ones, whose blocks mix locally and globally at linear cost; cross gates
fuse skips, and supervised attention (MPRNet, arXiv:2102.02808) hands features to the next stage.

Deviations: none known in the layout, which is the authors' code's (its bottleneck mixes over 8 x 8
grids too); in evaluation only the last, full-size image is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import gelu_tanh
from paredown.nn.features import need_size
from paredown.nn.mlp import Mlp
from paredown.zoo._gmlp import Axis, CrossGate, MultiAxisGmlp

# Features of the first level and stages.
VARIANTS: dict[str, tuple[int, int]] = {
    "s1": (32, 1),
    "s2": (32, 2),
    "s3": (32, 3),
    "m1": (64, 1),
    "m2": (64, 2),
    "m3": (64, 3),
}
BOTH: tuple[Axis, ...] = ("grid", "block")


class Conv(nn.Conv2d):
    """A convolution of maps ``(batch, h, w, channels)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, channels last."""
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def conv3(inputs: int, outputs: int) -> Conv:
    """A 3x3 convolution that keeps the size."""
    return Conv(inputs, outputs, 3, padding=1)


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation, channels last."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        return x * self.expand(self.reduce(x.mean((1, 2), keepdim=True)).relu()).sigmoid()


class ConvAttention(nn.Sequential):
    """Norm, two 3x3 convolutions, channel attention: to be added to its input (RCAB)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.LayerNorm(channels, eps=1e-6),
            conv3(channels, channels),
            nn.LeakyReLU(0.2),
            conv3(channels, channels),
            ChannelAttention(channels),
        )


class MlpAttention(nn.Sequential):
    """Norm, MLP over channels, channel attention: to be added to its input (RDCAB)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.LayerNorm(channels, eps=1e-6),
            Mlp(channels, channels, act=gelu_tanh),
            ChannelAttention(channels),
        )


class Level(nn.Module):
    """1x1, then groups of multi-axis gMLP and channel attention, on a long residual.

    ``dense`` has MLPs in the attention (the bottleneck), else convolutions.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        size: int,
        groups: int,
        axes: tuple[Axis, ...],
        dense: bool,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, channels)
        self.mixers = nn.ModuleList(MultiAxisGmlp(channels, size, axes=axes) for _ in range(groups))
        kind = MlpAttention if dense else ConvAttention
        self.attends = nn.ModuleList(kind(channels) for _ in range(groups))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, inputs)`` to ``(batch, h, w, channels)``."""
        first = x = self.enter(x)
        for mixer, attend in zip(self.mixers, self.attends, strict=True):
            x = mixer(x)
            x = x + attend(x)
        return x + first


class Rescale(nn.Module):
    """A map of another level brought to this one: bilinear, averaged when shrinking, then 1x1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """``(batch, h, w, inputs)`` to ``(batch, *size, outputs)``."""
        return self.mix(resized(x, size))


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, channels last; shrunk maps are smoothed first by a triangle of that width."""
    h = x.shape[1]
    if size[0] == h:
        return x
    small = size[0] < h
    out = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", antialias=small)
    return out.permute(0, 2, 3, 1)


class Fusion(nn.ModuleList):
    """The maps of all levels brought to one and concatenated."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__(Rescale(w, channels) for w in widths)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps in the order of the widths to ``(batch, *size, levels * channels)``."""
        return torch.cat([m(x, size) for m, x in zip(self, maps, strict=True)], -1)


class SupervisedAttention(nn.Module):
    """A restored image from features, and the features as that image lets them pass (SAM)."""

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.pass_on = conv3(channels, channels)
        self.image, self.gate = conv3(channels, image_channels), conv3(image_channels, channels)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the input image to features and the restored image."""
        restored = self.image(x) + image
        return x + self.pass_on(x) * self.gate(restored).sigmoid(), restored


class Stage(nn.Module):
    """One U-Net of three levels; ``first`` and ``last`` say where in the chain it stands."""

    def __init__(
        self,
        features: int,
        image_channels: int,
        *,
        scales: int,
        groups: int,
        bottlenecks: int,
        sizes: tuple[int, int, int],
        axes: tuple[Axis, ...],
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        widths = [features * 2**i for i in range(3)]
        self.scales, self.widths = scales, widths
        self.inputs = nn.ModuleList(conv3(image_channels, w) for w in widths[:scales])
        before = [widths[0], widths[0], widths[1]]
        taken = [before[i] + (widths[i] if i < scales else 0) for i in range(3)]
        self.encoders = nn.ModuleList(
            Level(taken[i], widths[i], sizes[i], groups, axes, False) for i in range(3)
        )
        self.downs = nn.ModuleList(Conv(w, w, 4, 2, 1) for w in widths)
        deep = widths[2]
        self.bottleneck = nn.Sequential(
            *(Level(deep, deep, sizes[2], groups, axes, True) for _ in range(bottlenecks))
        )
        above = [widths[1], deep, deep]
        self.encoded = nn.ModuleList(Fusion(widths, w) for w in widths)
        self.gates = nn.ModuleList(
            CrossGate((3 * widths[i], above[i]), widths[i], sizes[i], grow=True) for i in range(3)
        )
        self.skips = nn.ModuleList(Fusion(widths[::-1], w) for w in widths)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(above[i], widths[i], 2, 2) for i in range(3))
        self.decoders = nn.ModuleList(
            Level(4 * widths[i], widths[i], sizes[i], groups, axes, False) for i in range(3)
        )
        self.fuse_inputs = self.fuse_levels = self.attention = self.outputs = None
        if not first:
            self.fuse_inputs = nn.ModuleList(
                CrossGate((w, w), w, sizes[i]) for i, w in enumerate(widths[:scales])
            )
            self.fuse_levels = nn.ModuleList(
                CrossGate((w, w), w, sizes[i]) for i, w in enumerate(widths)
            )
        if last:
            self.outputs = nn.ModuleList(conv3(w, image_channels) for w in widths[:scales])
        else:
            self.attention = nn.ModuleList(
                SupervisedAttention(w, image_channels) for w in widths[:scales]
            )

    def forward(
        self,
        images: Sequence[Tensor],
        handed: Sequence[Tensor] = (),
        before: Sequence[Tensor] = (),
        only_full: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Restored images (coarse to fine), features handed on, sums of both paths' maps.

        ``images`` are the input at every scale; ``handed`` and ``before`` come from the stage
        before; ``only_full`` makes the finest image alone.
        """
        scaled: list[Tensor] = [conv(x) for conv, x in zip(self.inputs, images, strict=True)]
        if self.fuse_inputs is not None:
            scaled = [f(s, h)[0] for f, s, h in zip(self.fuse_inputs, scaled, handed, strict=True)]
        x, maps = scaled[0], list[Tensor]()
        for i, (encoder, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = encoder(torch.cat((x, scaled[i]), -1) if i < self.scales else x)
            if self.fuse_levels is not None:
                x, _ = self.fuse_levels[i](x, before[i])
            maps.append(x)
            x = down(x)
        x = deep = self.bottleneck(x)
        skips: list[Tensor] = []
        for i in (2, 1, 0):
            signal = self.encoded[i](maps, maps[i].shape[1:3])
            skip, deep = self.gates[i](signal, deep)
            skips.append(skip)
        restored, features, sums = list[Tensor](), list[Tensor](), list[Tensor]()
        for i in (2, 1, 0):
            signal = self.skips[i](skips, maps[i].shape[1:3])
            x = self.ups[i](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = self.decoders[i](torch.cat((x, signal), -1))
            sums.append(maps[i] + x)
            if i >= self.scales or (only_full and i):
                continue
            if self.attention is not None:
                passed, image = self.attention[i](x, images[i])
                features.append(passed)
                restored.append(image)
            elif self.outputs is not None:
                restored.append(self.outputs[i](x) + images[i])
        return restored, features[::-1], sums[::-1]


class MAXIM(nn.Module):
    """MAXIM for ``(batch, in_channels, h, w)`` images whose sides are multiples of 64.

    Returns the restored image, of the same shape; while training the images of all stages and
    supervised ``scales``, each stage's coarse to fine, for :func:`restoration_loss`. ``sizes`` are
    those of grids and blocks at the three levels; ``axes`` leaves one kind of mixing out.
    """

    def __init__(
        self,
        features: int = 32,
        stages: int = 1,
        in_channels: int = 3,
        *,
        scales: int = 1,
        groups: int = 2,
        bottlenecks: int = 2,
        sizes: tuple[int, int, int] = (16, 16, 8),
        axes: tuple[Axis, ...] = BOTH,
    ) -> None:
        super().__init__()
        if not 1 <= scales <= 3:
            raise InputError(f"MAXIM is supervised at 1 to 3 scales, got {scales}")
        self.scales = scales
        self.multiple = max(sizes[0], 2 * sizes[1], 8 * sizes[2])
        self.stages = nn.ModuleList(
            Stage(
                features,
                in_channels,
                scales=scales,
                groups=groups,
                bottlenecks=bottlenecks,
                sizes=sizes,
                axes=axes,
                first=i == 0,
                last=i == stages - 1,
            )
            for i in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Damaged images to restored ones."""
        need_size(x, network="MAXIM", multiple=self.multiple)
        images = [at_scale(x, i).permute(0, 2, 3, 1) for i in range(self.scales)]
        found, handed, before = list[Tensor](), list[Tensor](), list[Tensor]()
        last = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            only_full = not self.training and i == last
            restored, handed, before = stage(images, handed, before, only_full)
            found += [r.permute(0, 3, 1, 2) for r in restored]
        return found if self.training else found[-1]


def at_scale(x: Tensor, scale: int) -> Tensor:
    """Images ``(batch, channels, h, w)`` at ``2 ** -scale`` of their sides: the nearest pixels."""
    step = 2**scale
    return x[..., step // 2 :: step, step // 2 :: step]


def restoration_loss(
    found: Sequence[Tensor], target: Tensor, *, scales: int, frequency: float = 0.1
) -> Tensor:
    """Charbonnier loss and ``frequency`` times the L1 of spectra, over all images (section 3.5).

    ``found`` is what the network gives while training; the target is brought to every scale.
    """
    total = target.new_zeros(())
    for i, image in enumerate(found):
        wanted = at_scale(target, scales - 1 - i % scales)
        total = total + ((image - wanted).square() + 1e-6).sqrt().mean()
        spectra = torch.fft.rfft2(image) - torch.fft.rfft2(wanted)
        total = total + frequency * torch.view_as_real(spectra).abs().mean()
    return total


def maxim(variant: str = "s1", in_channels: int = 3, **settings: Any) -> MAXIM:
    """A published size: s1 to s3, m1 to m3 (features and stages). ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("MAXIM", variant, list(VARIANTS))
    return MAXIM(*VARIANTS[variant], in_channels, **settings)
