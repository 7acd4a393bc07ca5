"""Networks with parameter-free spatial layers (Han et al. 2022, arXiv:2202.02777).

ResNet-50 with max-pools for its 3x3 convolutions, all of them ("max") or those at stride 1
("hybrid"), and ViT with max-pools for the attention of every second block.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.drop import rising_rates
from paredown.nn.embed import PatchEmbed, patches
from paredown.nn.features import need_size, quarters, token_maps
from paredown.nn.init import small_init
from paredown.nn.pooled import PooledBottleneck, PooledMixer, Spatial
from paredown.nn.transformer import EncoderBlock
from paredown.zoo.resnet import DEPTHS, ResNet
from paredown.zoo.vit import VARIANTS


def pooled_resnet(
    spatial: Spatial = "hybrid", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> ResNet:
    """ResNet-50 of `PooledBottleneck` (the paper's R50-max and R50-hybrid)."""
    if spatial not in ("max", "hybrid"):
        raise UnknownName("pooled ResNet", spatial, ["hybrid", "max"])
    blocks, _ = DEPTHS[50]
    block = partial(PooledBottleneck, spatial=spatial)
    return ResNet(blocks, num_classes, in_channels, bottleneck=True, block=block, **settings)


class PooledViT(nn.Module):
    """ViT whose odd blocks pool instead of attending, for images of one fixed size.

    ``(batch, in_channels, size, size)`` to logits ``(batch, num_classes)``, or with
    ``features_only`` the maps after each quarter of the blocks. No class token: the mean of all
    tokens is classified. ``attention_every`` 2 is the paper's; raises ``InputError`` where the
    patch does not divide the image.
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
        attention_every: int = 2,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.image_size = patches(image_size, patch), image_size
        self.taps = quarters(depth, features_only=features_only)
        self.embed = PatchEmbed(in_channels, channels, patch)
        self.position = nn.Parameter(torch.zeros(1, self.side**2, channels))
        grid = (self.side, self.side)
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(
                    channels,
                    num_heads,
                    mlp_ratio,
                    drop=rate,
                    mixer=PooledMixer(channels, grid) if i % attention_every else None,
                )
                for i, rate in enumerate(rising_rates(drop, depth))
            )
        )
        self.head = None
        if not features_only:
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            self.head = nn.Linear(channels, num_classes)
        self.apply(small_init)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to maps on the way."""
        need_size(x, network="ViT", exactly=self.image_size)
        x = self.embed(x) + self.position
        if self.head is None:
            return token_maps(self.blocks, x, self.taps, self.side)
        return self.head(self.norm(self.blocks(x)).mean(1))


def pooled_vit(
    variant: str = "s", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> PooledViT:
    """A published size (ViT-max): ti, s or b. Raises ``UnknownName`` for another."""
    if variant not in ("ti", "s", "b"):
        raise UnknownName("pooled ViT", variant, ["ti", "s", "b"])
    channels, depth, heads = VARIANTS[variant]
    return PooledViT(channels, depth, heads, num_classes, in_channels, **settings)
