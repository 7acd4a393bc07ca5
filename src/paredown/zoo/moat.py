"""MOAT: mobile convolution, then attention, in one block (Yang et al. 2022, arXiv:2210.01820).

Deviation: strided convolutions pad symmetrically, where TensorFlow's "SAME" pads after only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.act import silu
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.embed import relative_index
from paredown.nn.features import need_size, tapped
from paredown.nn.init import small_init
from paredown.nn.squeeze import SqueezeExcite
from paredown.nn.window import from_windows, to_windows

# Stem width, widths, depths, image size of the table (table 9).
VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int]] = {
    "tiny-0": (32, (32, 64, 128, 256), (2, 3, 7, 2), 256),
    "tiny-1": (40, (40, 80, 160, 320), (2, 3, 7, 2), 256),
    "tiny-2": (56, (56, 112, 224, 448), (2, 3, 7, 2), 256),
    "tiny-3": (80, (80, 160, 320, 640), (2, 3, 7, 2), 256),
    "0": (64, (96, 192, 384, 768), (2, 3, 7, 2), 224),
    "1": (64, (96, 192, 384, 768), (2, 6, 14, 2), 224),
    "2": (128, (128, 256, 512, 1024), (2, 6, 14, 2), 224),
    "3": (160, (160, 320, 640, 1280), (2, 12, 28, 2), 512),
    "4": (256, (256, 512, 1024, 2048), (2, 12, 28, 2), 512),
}
PRETRAINED = 224
"""Tables of larger images are tuned from networks of this size, whose position biases they keep."""
HEAD_DIM = 32


class MobileConv(nn.Module):
    """Pre-norm inverted residual (section 3.1): norm, 1x1 up, 3x3 depthwise, SE, 1x1 down; a skip.

    The skip is pooled 2x2 where strided, and a 1x1 convolution where the width changes.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        expand: int = 4,
        squeeze: bool = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        inner = expand * outputs
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.GELU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.GELU(),
            SqueezeExcite(inner, max(1, outputs // 4), act=silu) if squeeze else nn.Identity(),
            nn.Conv2d(inner, outputs, 1),
        )
        pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else nn.Identity()
        fit = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.skip = nn.Sequential(pool, fit)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        return self.skip(x) + self.drop(self.body(x))


class RelativeAttention(nn.Module):
    """Multi-head attention in windows with a relative position bias; one window may be the map.

    ``table`` is the window that the bias is learned for; it is enlarged bilinearly to ``window``,
    as the networks pretrained at 224 pixels and tuned at more.
    """

    def __init__(
        self, channels: int, window: int, *, table: int | None = None, head_dim: int = HEAD_DIM
    ) -> None:
        super().__init__()
        if channels % head_dim:
            raise InputError(f"{channels} channels do not divide into heads of {head_dim}")
        self.window, self.head_dim, self.num_heads = window, head_dim, channels // head_dim
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        known = window if table is None else table
        self.table = nn.Parameter(torch.empty(self.num_heads, 2 * known - 1, 2 * known - 1))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_index(window, window), persistent=False)

    index: Tensor

    def bias(self) -> Tensor:
        """What is added to the scores: ``(heads, tokens, tokens)`` of one window."""
        span = 2 * self.window - 1
        table = self.table
        if table.shape[-1] != span:
            table = F.interpolate(table.unsqueeze(0), (span, span), mode="bilinear")[0]
        return table.flatten(1)[:, self.index]

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape; the window divides h and w."""
        h, w = x.shape[1:3]
        x = to_windows(x, self.window)
        count, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias())
        out = self.proj(out.transpose(1, 2).reshape(count, tokens, -1))
        return from_windows(out, self.window, h, w)


class MOATBlock(nn.Module):
    """A mobile convolution without squeeze-excite, then attention, each on a residual (fig. 1)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        window: int,
        *,
        stride: int = 1,
        table: int | None = None,
        head_dim: int = HEAD_DIM,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = MobileConv(inputs, outputs, stride=stride, squeeze=False, drop=drop)
        self.norm = nn.LayerNorm(outputs, eps=1e-5)
        self.attention = RelativeAttention(outputs, window, table=table, head_dim=head_dim)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        x = self.conv(x)
        y = self.attention(self.norm(x.permute(0, 2, 3, 1)))
        return x + self.drop(y.permute(0, 3, 1, 2))


class MOAT(nn.Module):
    """MOAT for ``(batch, in_channels, h, w)`` images.

    Stages 1 and 2 are mobile convolutions, 3 and 4 MOAT blocks. ``windows`` are the attention
    windows of the last two stages: None (classification) takes the whole map of ``image_size``,
    which is then the one size the network takes; with windows it takes every size whose maps they
    divide. ``tables`` are the windows that position biases are learned for, where smaller. Returns
    logits ``(batch, num_classes)``, or with ``features_only`` the stages' outputs (strides 4 to
    32).
    """

    def __init__(
        self,
        stem: int = 32,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 3, 7, 2),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 256,
        windows: tuple[int, int] | None = None,
        tables: tuple[int, int] | None = None,
        head_dim: int = HEAD_DIM,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        if image_size % 32:
            raise InputError(f"image_size is a multiple of 32, got {image_size}")
        self.image_size = image_size if windows is None else None
        sides = windows or (image_size // 16, image_size // 32)
        # Windows of stages 3 and 4, in pixels of the image.
        self.multiple = math.lcm(16 * sides[0], 32 * sides[1])
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, 2, 1),
            nn.BatchNorm2d(stem),
            nn.GELU(),
            nn.Conv2d(stem, stem, 3, 1, 1),
        )
        rates = iter(rising_rates(drop, sum(depths)))
        stages: list[nn.Module] = []
        channels = stem
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                stride, rate = 1 if j else 2, next(rates)
                if i < 2:
                    block = MobileConv(channels, width, stride=stride, drop=rate)
                else:
                    block = MOATBlock(
                        channels,
                        width,
                        sides[i - 2],
                        stride=stride,
                        table=tables[i - 2] if tables else None,
                        head_dim=head_dim,
                        drop=rate,
                    )
                blocks.append(block)
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(channels, eps=1e-6) if not features_only else nn.Identity()
        self.head = nn.Linear(channels, num_classes) if not features_only else None
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' features."""
        need_size(
            x, network="this MOAT", multiple=self.multiple, minimum=1, exactly=self.image_size
        )
        maps = tapped(self.stages, self.stem(x), range(len(self.stages)))
        return maps if self.head is None else self.head(self.norm(maps[-1].mean((2, 3))))


def moat(
    variant: str = "tiny-0",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    image_size: int | None = None,
    windows: tuple[int, int] | None = None,
    drop: float = 0.0,
    features_only: bool = False,
) -> MOAT:
    """A published size (``VARIANTS``), built for its image size unless another is given.

    Raises ``UnknownName`` for another variant.
    """
    if variant not in VARIANTS:
        raise UnknownName("MOAT", variant, list(VARIANTS))
    stem, widths, depths, side = VARIANTS[variant]
    side = side if image_size is None else image_size
    tuned = side > 256 and windows is None
    return MOAT(
        stem,
        widths,
        depths,
        num_classes,
        in_channels,
        image_size=side,
        windows=windows,
        tables=(PRETRAINED // 16, PRETRAINED // 32) if tuned else None,
        drop=drop,
        features_only=features_only,
    )
