"""Swin transformer: attention in shifted windows (Liu et al. 2021, arXiv:2103.14030)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.features import need_size
from paredown.nn.init import small_init
from paredown.nn.mlp import Mlp
from paredown.nn.window import WindowAttention

# Width of the first stage, depths, heads (section 3.3); head width 32, window 7.
VARIANTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP, each on a residual (equation 3)."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int,
        *,
        shift: int,
        size: tuple[int, int],
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window, shift=shift, size=size)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, round(channels * mlp_ratio))
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Each 2x2 of pixels concatenated, normalised and mapped to twice the channels (section 3.1).

    Sides that are odd are padded with zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to ``(batch, h / 2, w / 2, 2 * channels)``."""
        _, h, w, _ = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        four = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduce(self.norm(torch.cat(four, -1)))


class Swin(nn.Module):
    """Swin for ``(batch, in_channels, h, w)`` images of sides 4 or more; defaults are Swin-T.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the outputs of the stages,
    each layer-normalised, channels first (strides 4 to 32). The masks of shifted windows are made
    once for ``image_size``, anew for other sizes; maps that the window does not divide are padded.
    ``drop`` is the last block's rate of stochastic depth.
    """

    def __init__(
        self,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        patch: int = 4,
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(in_channels, width, patch, patch)
        self.embed_norm = nn.LayerNorm(width)
        rates = iter(rising_rates(drop, sum(depths)))
        side, channels, stages = image_size // patch, width, []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            stage: list[nn.Module] = []
            if i:
                stage.append(PatchMerging(channels))
                side, channels = -(-side // 2), 2 * channels
            for j in range(depth):
                stage.append(
                    SwinBlock(
                        channels,
                        heads,
                        window,
                        shift=window // 2 if j % 2 else 0,
                        size=(side, side),
                        mlp_ratio=mlp_ratio,
                        drop=next(rates),
                    )
                )
            stages.append(nn.Sequential(*stage))
        self.stages = nn.ModuleList(stages)
        self.head = None
        if features_only:
            self.norms = nn.ModuleList(nn.LayerNorm(width * 2**i) for i in range(len(depths)))
        else:
            self.norm = nn.LayerNorm(channels)
            self.head = nn.Linear(channels, num_classes)
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to the stages' outputs."""
        need_size(x, network="Swin", minimum=self.patch)
        x = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        if self.head is None:
            return [n(m).permute(0, 3, 1, 2) for n, m in zip(self.norms, maps, strict=True)]
        return self.head(self.norm(x).mean((1, 2)))


def swin(
    variant: str = "tiny", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> Swin:
    """A published variant: tiny, small or base. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("Swin", variant, list(VARIANTS))
    width, depths, heads = VARIANTS[variant]
    return Swin(width, depths, heads, num_classes, in_channels, **settings)
