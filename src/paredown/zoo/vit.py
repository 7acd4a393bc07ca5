"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929; DeiT: arXiv:2012.12877)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.drop import rising_rates
from paredown.nn.embed import patches
from paredown.nn.features import need_size, quarters, token_maps
from paredown.nn.init import small_init
from paredown.nn.transformer import EncoderBlock

# Channels, blocks, heads; patch 16.
VARIANTS: dict[str, tuple[int, int, int]] = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
}


class ViT(nn.Module):
    """ViT with a class token for ``(batch, in_channels, size, size)`` images of one fixed size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the patches' maps after each
    quarter of the blocks (all of stride ``patch``). ``distilled`` adds DeiT's distillation token
    with a head of its own: while training the output is both heads', else their mean (DeiT,
    section 4). ``drop`` is the last block's rate of stochastic depth. Raises ``InputError`` where
    the patch does not divide the image or the heads the channels, and for images of another size.
    """

    def __init__(
        self,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        patch: int = 16,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        distilled: bool = False,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.image_size = patches(image_size, patch), image_size
        self.taps = quarters(depth, features_only=features_only)
        self.prefix = 2 if distilled else 1
        self.embed = nn.Conv2d(in_channels, channels, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, channels))
        self.distil = nn.Parameter(torch.zeros(1, 1, channels)) if distilled else None
        self.position = nn.Parameter(torch.zeros(1, self.side**2 + self.prefix, channels))
        rates = rising_rates(drop, depth)
        self.blocks = nn.Sequential(
            *(EncoderBlock(channels, num_heads, mlp_ratio, drop=rate) for rate in rates)
        )
        self.head = self.distil_head = None
        if not features_only:
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            self.head = nn.Linear(channels, num_classes)
            self.distil_head = nn.Linear(channels, num_classes) if distilled else None
        self.apply(small_init)
        for token in (self.cls, self.distil, self.position):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor] | list[Tensor]:
        """Images to logits, or to maps on the way."""
        need_size(x, network="ViT", exactly=self.image_size)
        x = self._tokens(x)
        if self.head is None:
            return token_maps(self.blocks, x, self.taps, self.side, prefix=self.prefix)
        x = self.norm(self.blocks(x))
        logits = self.head(x[:, 0])
        if self.distil_head is None:
            return logits
        distilled = self.distil_head(x[:, 1])
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def _tokens(self, x: Tensor) -> Tensor:
        """Images to patches with the extra tokens before them and positions added."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        extra = [self.cls] if self.distil is None else [self.cls, self.distil]
        return torch.cat((*(t.expand(x.shape[0], -1, -1) for t in extra), x), 1) + self.position


def vit(variant: str = "s", num_classes: int = 1000, in_channels: int = 3, **settings: Any) -> ViT:
    """A published size: ti, s, b or l. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("ViT", variant, list(VARIANTS))
    channels, depth, heads = VARIANTS[variant]
    return ViT(channels, depth, heads, num_classes, in_channels, **settings)
