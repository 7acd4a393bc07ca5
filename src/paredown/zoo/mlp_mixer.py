"""MLP-Mixer: MLPs over patches, MLPs over channels (Tolstikhin et al. 2021, arXiv:2105.01601)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.embed import PatchEmbed, patches
from paredown.nn.features import need_size, quarters, token_maps
from paredown.nn.init import small_init
from paredown.nn.mlp import Mlp

# Channels, blocks, hidden width over tokens and over channels (table 1); patch 16.
VARIANTS: dict[str, tuple[int, int, int, int]] = {
    "s": (512, 8, 256, 2048),
    "b": (768, 12, 384, 3072),
    "l": (1024, 24, 512, 4096),
}


class MixerBlock(nn.Module):
    """An MLP across the tokens of each channel, then across the channels of each token (eq. 1)."""

    def __init__(
        self,
        tokens: int,
        channels: int,
        token_hidden: int,
        channel_hidden: int,
        *,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.token_mlp = Mlp(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.channel_mlp = Mlp(channels, channel_hidden)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        x = x + self.drop(self.token_mlp(self.norm1(x).mT).mT)
        return x + self.drop(self.channel_mlp(self.norm2(x)))


class MlpMixer(nn.Module):
    """MLP-Mixer for ``(batch, in_channels, size, size)`` images of one fixed size.

    Returns logits ``(batch, num_classes)``, or with ``features_only`` the patches' maps after each
    quarter of the blocks (all of stride ``patch``). Raises ``InputError`` where the patch does not
    divide the image, and for images of another size.
    """

    def __init__(
        self,
        channels: int = 512,
        depth: int = 8,
        token_hidden: int = 256,
        channel_hidden: int = 2048,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        patch: int = 16,
        drop: float = 0.0,
        features_only: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.image_size = patches(image_size, patch), image_size
        self.taps = quarters(depth, features_only=features_only)
        self.embed = PatchEmbed(in_channels, channels, patch)
        self.blocks = nn.Sequential(
            *(
                MixerBlock(self.side**2, channels, token_hidden, channel_hidden, drop=rate)
                for rate in rising_rates(drop, depth)
            )
        )
        self.head = None
        if not features_only:
            self.norm = nn.LayerNorm(channels, eps=1e-6)
            self.head = nn.Linear(channels, num_classes)
        self.apply(small_init)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Images to logits, or to maps on the way."""
        need_size(x, network="MLP-Mixer", exactly=self.image_size)
        x = self.embed(x)
        if self.head is None:
            return token_maps(self.blocks, x, self.taps, self.side)
        return self.head(self.norm(self.blocks(x)).mean(1))


def mixer(
    variant: str = "b", num_classes: int = 1000, in_channels: int = 3, **settings: Any
) -> MlpMixer:
    """A published size: s, b or l, with patches of 16. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("MLP-Mixer", variant, list(VARIANTS))
    return MlpMixer(*VARIANTS[variant], num_classes, in_channels, **settings)
