"""LSNet: see large, focus small (Wang et al. 2025, arXiv:2503.23135).

Our graph counts the dynamic kernels' products as elementwise work, not as MACs; they are 0.2 to
0.3 % of the network's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.dynamic import dynamic_depthwise
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.reparam import RepConv
from paredown.nn.squeeze import SqueezeExcite

# Widths, depths, attention heads of the last stage (table 1).
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "t": ((64, 128, 256, 384), (0, 2, 8, 10), 4),
    "s": ((96, 192, 320, 448), (1, 2, 8, 10), 4),
    "b": ((128, 256, 384, 512), (4, 6, 8, 10), 4),
}


class LSConv(nn.Module):
    """A 7x7 look predicts 3x3 kernels per position, each shared by ``share`` channels (3.2)."""

    def __init__(self, channels: int, *, look: int = 7, focus: int = 3, share: int = 8) -> None:
        super().__init__()
        if channels % share:
            raise InputError(f"{channels} channels do not divide into kernels of {share}")
        half, self.shared = channels // 2, channels // share
        self.look = nn.Sequential(
            ConvNormAct(channels, half),
            ConvNormAct(half, half, look, groups=half, act=None),
            ConvNormAct(half, half),
        )
        self.predict = nn.Conv2d(half, focus * focus * self.shared, 1)
        self.kernel_norm = nn.GroupNorm(self.shared, focus * focus * self.shared)
        self.norm = nn.BatchNorm2d(channels)

    def kernels(self, x: Tensor) -> Tensor:
        """The predicted kernels, ``(batch, channels / share, taps, h, w)``."""
        flat = self.kernel_norm(self.predict(self.look(x)))
        return flat.reshape(flat.shape[0], self.shared, -1, *flat.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.norm(dynamic_depthwise(x, self.kernels(x)))


class RepDepthwise(nn.Module):
    """3x3 and 1x1 depthwise convolutions, each with a batch norm, and the input itself, summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = RepConv(channels, channels, 3, groups=channels, identity=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.conv(x)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """One 3x3 depthwise convolution, equal in evaluation mode."""
        conv = self.conv.fuse()
        conv.weight[:, 0, 1, 1] += 1
        return conv


class OffsetAttention(nn.Module):
    """Attention over a ``side x side`` map with a bias per head and absolute offset.

    Queries and keys have 16 channels a head and queries pass a 3x3 depthwise convolution; values
    share out all channels.
    """

    def __init__(self, channels: int, num_heads: int, side: int, *, key_dim: int = 16) -> None:
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads, self.key_dim = num_heads, key_dim
        keys = num_heads * key_dim
        self.parts = (keys, keys, channels)
        self.qkv = ConvNormAct(channels, 2 * keys + channels, act=None)
        self.near = ConvNormAct(keys, keys, 3, groups=keys, act=None)
        self.proj = nn.Sequential(nn.ReLU(), ConvNormAct(channels, channels, act=None))
        self.bias = nn.Parameter(torch.zeros(num_heads, side * side))
        at = torch.arange(side * side)
        row, column = at // side, at % side
        apart = (row[:, None] - row).abs() * side + (column[:, None] - column).abs()
        self.register_buffer("index", apart, persistent=False)

    index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, side, side)`` to the same shape."""
        q, k, v = self.qkv(x).split(self.parts, dim=1)
        q, k, v = (
            t.reshape(x.shape[0], self.num_heads, -1, x.shape[2] * x.shape[3]).transpose(2, 3)
            for t in (self.near(q), k, v)
        )
        bias = self.bias[:, self.index]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(2, 3).reshape(x.shape))


class LSBlock(nn.Module):
    """A token mixer (with squeeze-excite behind the re-parameterised one), then an MLP."""

    def __init__(self, channels: int, mixer: nn.Module, *, drop: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        plain = isinstance(mixer, RepDepthwise)
        self.squeeze = SqueezeExcite(channels, channels // 4) if plain else nn.Identity()
        self.mlp = nn.Sequential(
            ConvNormAct(channels, 2 * channels), ConvNormAct(2 * channels, channels, act=None)
        )
        # Attention stands on a residual of its own; the other mixers add their input themselves.
        self.skips = isinstance(mixer, OffsetAttention)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        mixed = self.mixer(x)
        x = x + self.drop(mixed) if self.skips else self.squeeze(mixed)
        return x + self.drop(self.mlp(x))


class LSNet(nn.Module):
    """LSNet for ``(batch, in_channels, image_size, image_size)`` images, one size per network.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the four
    stages (strides 8 to 64). Odd blocks mix by :class:`LSConv`, in the last stage by attention;
    ``large`` False puts the plain mixer there too. ``stem_stride`` is 8, or 4 for small images.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 384),
        depths: Sequence[int] = (0, 2, 8, 10),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        num_heads: int = 4,
        image_size: int = 224,
        large: bool = True,
        stem_stride: int = 8,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if stem_stride not in (4, 8):
            raise InputError(f"the stem's stride is 4 or 8, got {stem_stride}")
        self.image_size = image_size
        first = widths[0]
        stem = [
            ConvNormAct(in_channels, first // 4, 3, stride=2),
            ConvNormAct(first // 4, first // 2, 3, stride=2),
            ConvNormAct(first // 2, first, 3, stride=stem_stride // 4, act=None),
        ]
        side = -(-image_size // stem_stride)
        rates = iter(rising_rates(drop, sum(depths)))
        stages: list[nn.Module] = []
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers: list[nn.Module] = list(stem)
            if i:
                before, side = widths[i - 1], -(-side // 2)
                layers = [
                    ConvNormAct(before, before, 3, stride=2, groups=before, act=None),
                    ConvNormAct(before, width, act=None),
                ]
            for j in range(depth):
                mixer: nn.Module = RepDepthwise(width)
                if j % 2 and i == len(widths) - 1:
                    mixer = OffsetAttention(width, num_heads, side)
                elif j % 2 and large:
                    mixer = LSConv(width)
                layers.append(LSBlock(width, mixer, drop=next(rates)))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.head = None
        if not features_only:
            self.head = nn.Sequential(
                nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], num_classes)
            ).apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(x, network="this LSNet", exactly=self.image_size)
        maps = tapped(self.stages, x, range(len(self.stages)))
        return maps if self.head is None else self.head(maps[-1].mean((2, 3)))


def lsnet(
    variant: str = "t",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    image_size: int = 224,
    drop: float = 0.0,
    features_only: bool = False,
) -> LSNet:
    """A published size: t, s or b. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("LSNet", variant, list(VARIANTS))
    widths, depths, heads = VARIANTS[variant]
    return LSNet(
        widths,
        depths,
        num_classes,
        in_channels,
        num_heads=heads,
        image_size=image_size,
        drop=drop,
        features_only=features_only,
    )
