"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929; DeiT: arXiv:2012.12877)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.transformer import EncoderBlock

# Channels, blocks, heads; patch 16.
VARIANTS: dict[str, tuple[int, int, int]] = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
}


class ViT(nn.Module):
    """ViT with a class token for ``(batch, in_channels, size, size)`` images of one fixed size.

    Raises ``InputError`` where the patch does not divide the image or the heads the channels.
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
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise InputError(f"patch {patch} does not divide the image size {image_size}")
        tokens = (image_size // patch) ** 2
        self.embed = nn.Conv2d(in_channels, channels, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, channels))
        self.position = nn.Parameter(torch.zeros(1, tokens + 1, channels))
        self.blocks = nn.Sequential(
            *(EncoderBlock(channels, num_heads, mlp_ratio) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)
        self.apply(_init)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vit(
    variant: str = "s",
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    image_size: int = 224,
    patch: int = 16,
) -> ViT:
    """A published size: ti, s or b. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("ViT", variant, list(VARIANTS))
    channels, depth, heads = VARIANTS[variant]
    return ViT(channels, depth, heads, num_classes, in_channels, image_size=image_size, patch=patch)
