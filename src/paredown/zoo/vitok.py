"""ViTok: a vision transformer that tokenizes images and clips (Hansen-Estruch 2025, 2501.09755).

An auto-encoder: tubelets of ``tubelet x patch x patch`` pixels become tokens, an encoder narrows
each to ``latent`` floats, a larger decoder makes pixels of them. What governs reconstruction is
E = tokens * latent (section 3.1). Sizes from table 1, layers as in the authors' first PyTorch code:
layer norms with one after the last block, no bias in qkv, gates 2.67 wide.

Deviations: SwiGLU as the paper says (the code's gate is GELU); positions are 3-D axial RoPE as the
paper says (the code runs 1-D RoPE, and adds sines for clips); how the axes share a head's pairs
is not published and ours; attention is not causal. The perceptual and adversarial losses need
networks of their own: the first is a callable that the caller brings, the second is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.features import need_volume
from paredown.nn.rotary import RotaryBlock, axial_rotation

Size = tuple[int, int, int]
# Channels, blocks, heads (table 1).
SIZES: dict[str, Size] = {"s": (768, 6, 12), "b": (768, 12, 12), "l": (1152, 24, 16)}
GATE = 2.67


class Coder(nn.Module):
    """Transformer blocks on a grid of tokens, and a norm behind them."""

    def __init__(self, channels: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = channels // num_heads
        hidden = int(GATE * channels)
        self.blocks = nn.ModuleList(RotaryBlock(channels, num_heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape; tokens are ``grid``'s, rows first."""
        rotation = axial_rotation(grid, self.head_dim, like=x)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x)


class ViTok(nn.Module):
    """ViTok for images ``(batch, in_channels, h, w)`` or clips ``(batch, in_channels, t, h, w)``.

    Returns the pixels again, of the input's shape; while training ``(pixels, mean, logvar)``, the
    pixels from a sample of the latent code. ``encode`` and ``decode`` are the two halves. Images
    are clips of one frame and need ``tubelet`` 1. Heights and widths are multiples of ``patch``,
    frames of ``tubelet`` (else ``InputError`` with those that can be taken).
    """

    def __init__(
        self,
        encoder: Size = SIZES["s"],
        decoder: Size = SIZES["b"],
        latent: int = 16,
        in_channels: int = 3,
        *,
        patch: int = 16,
        tubelet: int = 1,
    ) -> None:
        super().__init__()
        self.latent, self.patch, self.tubelet = latent, patch, tubelet
        self.in_channels = in_channels
        box = (tubelet, patch, patch)
        self.embed = nn.Conv3d(in_channels, encoder[0], box, box)
        self.encoder = Coder(*encoder)
        self.narrow = nn.Linear(encoder[0], 2 * latent)
        self.widen = nn.Linear(latent, decoder[0])
        self.decoder = Coder(*decoder)
        self.pixels = nn.ConvTranspose3d(decoder[0], in_channels, box, box)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Conv3d)):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Pixels to pixels through the latent code."""
        mean, logvar = self.encode(x)
        grid = self.grid(x)
        if not self.training:
            return self._as(x, self.decode(mean, grid))
        code = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self._as(x, self.decode(code, grid)), mean, logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent code, ``(batch, tokens, latent)`` each."""
        grid = self.grid(x)
        tokens = self.embed(self._clip(x)).flatten(2).mT
        mean, logvar = self.narrow(self.encoder(tokens, grid)).chunk(2, -1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, code: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """A code ``(batch, tokens, latent)`` to a clip; ``grid`` is frames, rows, columns of it."""
        tokens = self.decoder(self.widen(code), grid)
        return self.pixels(tokens.mT.unflatten(2, grid))

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of the code of this input; refuses what cannot be taken."""
        if x.ndim == 4 and self.tubelet > 1:
            raise InputError(
                f"ViTok of tubelets of {self.tubelet} frames takes clips (batch, channels, frames, "
                f"height, width), got {tuple(x.shape)}"
            )
        box = (self.tubelet, self.patch, self.patch)
        clip = self._clip(x)
        need_volume(clip, network="ViTok", multiple=box, minimum=box)
        t, h, w = (n // k for n, k in zip(clip.shape[2:], box, strict=True))
        return t, h, w

    def freeze_encoder(self) -> None:
        """Only the decoder learns from here on (stage 2 of section 2.3)."""
        for part in (self.embed, self.encoder, self.narrow):
            part.requires_grad_(False)

    def _clip(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2) if x.ndim == 4 else x

    def _as(self, x: Tensor, clip: Tensor) -> Tensor:
        return clip.squeeze(2) if x.ndim == 4 else clip


def code_floats(
    image_size: int, *, frames: int = 1, patch: int = 16, tubelet: int = 1, latent: int = 16
) -> int:
    """E, the floats of a square input's code (equation 2): tokens times latent channels."""
    return (frames // tubelet) * (image_size // patch) ** 2 * latent


def counted_macs(
    variant: str,
    image_size: int,
    *,
    frames: int = 1,
    patch: int = 16,
    tubelet: int = 1,
    latent: int = 16,
    in_channels: int = 3,
) -> int:
    """MACs of a run on one square input, in closed form; equal to the graph's count."""
    encoder, decoder = sizes(variant)
    tokens = code_floats(image_size, frames=frames, patch=patch, tubelet=tubelet, latent=1)
    box = tubelet * patch * patch * in_channels
    total = tokens * (encoder[0] * (box + 2 * latent) + decoder[0] * (box + latent))
    for channels, depth, _ in (encoder, decoder):
        weights = channels * (4 * channels + 3 * int(GATE * channels))
        total += depth * tokens * (weights + 2 * tokens * channels)
    return total


def loss(
    out: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    *,
    kl: float = 1e-3,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    weight: float = 1.0,
) -> Tensor:
    """Stage 1 (equation 1): squared error, ``kl`` times KL, ``weight`` times a perceptual distance.

    ``out`` is what the network returns while training. The KL to a unit normal is a mean over the
    code's floats (the paper does not say how it is reduced), the squared error one over pixels.
    """
    pixels, mean, logvar = out
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    total = F.mse_loss(pixels, x) + kl * divergence
    return total if perceptual is None else total + weight * perceptual(pixels, x)


def sizes(variant: str) -> tuple[Size, Size]:
    """Encoder and decoder of a name as "s-b"; ``UnknownName`` for a size that is not there."""
    first, _, second = variant.partition("-")
    for size in (first, second):
        if size not in SIZES:
            raise UnknownName("size of ViTok", size, list(SIZES))
    return SIZES[first], SIZES[second]


def vitok(
    variant: str = "s-b",
    patch: int = 16,
    tubelet: int = 1,
    latent: int = 16,
    in_channels: int = 3,
) -> ViTok:
    """Any member of the family: "s-b" is a small encoder and a base decoder (table 1: s, b, l)."""
    encoder, decoder = sizes(variant)
    return ViTok(encoder, decoder, latent, in_channels, patch=patch, tubelet=tubelet)
