"""DiT: a diffusion transformer over latents (Peebles & Xie 2023, arXiv:2212.09748).

The adaLN-Zero form: time and class set shift, scale and gate of every block, all gates zero at
first, so a new network's blocks are the identity (section 3.2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.act import gelu_tanh
from paredown.nn.diffusion import ClassConditional
from paredown.nn.embed import PatchEmbed, patches, sincos_2d
from paredown.nn.features import need_size
from paredown.nn.init import small_init
from paredown.nn.mlp import Mlp
from paredown.nn.transformer import SelfAttention

# Channels, blocks, heads (table 1); the number behind the slash is the patch.
VARIANTS: dict[str, tuple[int, int, int]] = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1152, 28, 16),
}


class TimeEmbed(nn.Module):
    """Cosines and sines of the time step, then an MLP: ``(batch,)`` to ``(batch, channels)``."""

    def __init__(self, channels: int, frequencies: int = 256) -> None:
        super().__init__()
        half = frequencies // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("rates", rates, persistent=False)
        self.fc1, self.act = nn.Linear(frequencies, channels), nn.SiLU()
        self.fc2 = nn.Linear(channels, channels)

    rates: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Time steps to their embedding."""
        angle = t[:, None].to(self.rates.dtype) * self.rates
        return self.fc2(self.act(self.fc1(torch.cat((angle.cos(), angle.sin()), 1))))


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (figure 3, adaLN-Zero)."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(channels, round(channels * mlp_ratio), act=gelu_tanh)
        self.modulation = nn.Linear(channels, 6 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` and ``(batch, channels)`` to the tokens' shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, -1)
        )
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(ClassConditional):
    """DiT for latents ``(batch, in_channels, size, size)``, time steps and classes ``(batch,)``.

    Returns noise and, with ``learn_sigma``, as many channels of variance logits behind it:
    ``(batch, 2 * in_channels, size, size)``. Class ``num_classes`` is "no class", for guidance;
    while training a class is replaced by it with probability ``class_dropout``. Raises
    ``InputError`` where the patch does not divide the latent, and for latents of another size.
    """

    def __init__(
        self,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_classes: int = 1000,
        in_channels: int = 4,
        *,
        image_size: int = 32,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = True,
        class_dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, in_channels, class_dropout)
        self.side, self.image_size, self.patch = patches(image_size, patch), image_size, patch
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.embed = PatchEmbed(in_channels, channels, patch)
        self.register_buffer("position", sincos_2d(self.side, channels), persistent=False)
        self.time = TimeEmbed(channels)
        self.classes = nn.Embedding(self.known_classes, channels)
        self.blocks = nn.ModuleList(DiTBlock(channels, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(channels, 2 * channels)
        self.head = nn.Linear(channels, patch * patch * self.out_channels)
        self._init()

    position: Tensor

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Noisy latents, their time steps and classes to noise (and variance logits)."""
        need_size(x, network="DiT", exactly=self.image_size)
        y = self.told(y)
        condition = self.time(t) + self.classes(y)
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, -1)
        return self._image(self.head(self.norm(x) * (1 + scale) + shift))

    def _image(self, x: Tensor) -> Tensor:
        """Patches ``(batch, tokens, patch * patch * channels)`` back to a map."""
        x = x.reshape(-1, self.side, self.side, self.patch, self.patch, self.out_channels)
        x = x.permute(0, 5, 1, 3, 2, 4)
        side = self.side * self.patch
        return x.reshape(-1, self.out_channels, side, side)

    def _init(self) -> None:
        """Xavier for linears, zeros where a block must start as the identity (section 3.2)."""
        self.apply(small_init)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
        nn.init.xavier_uniform_(self.embed.proj.weight.flatten(1))
        for layer in (self.time.fc1, self.time.fc2, self.classes):
            nn.init.normal_(layer.weight, std=0.02)
        zero = [self.modulation, self.head]
        zero += [m.modulation for m in self.modules() if isinstance(m, DiTBlock)]
        for layer in zero:
            nn.init.zeros_(layer.weight)


def dit(
    variant: str = "s",
    patch: int = 2,
    num_classes: int = 1000,
    in_channels: int = 4,
    **settings: Any,
) -> DiT:
    """A published size: s, b, l or xl, with patches of 2, 4 or 8. ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("DiT", variant, list(VARIANTS))
    return DiT(*VARIANTS[variant], num_classes, in_channels, patch=patch, **settings)


def example(*, batch: int, image_size: int, in_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded noise, time steps spread over the schedule, and classes 0, 1, ... modulo 10."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, in_channels, image_size, image_size, generator=generator)
    t = torch.linspace(999, 0, batch).long() if batch > 1 else torch.tensor([500])
    return x, t, torch.arange(batch) % 10
