"""DiCo: a diffusion network of convolutions alone (Ai et al. 2025, arXiv:2505.11196).

Depthwise 3x3 convolutions mix space, a compact channel attention keeps channels from saying the
same, time and class set every block as in DiT (adaLN-Zero). A U of three levels over the latents,
without patches.

Deviation: one class is drawn to be forgotten for all three levels, as in the authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.diffusion import ClassConditional
from paredown.nn.features import need_size
from paredown.nn.norm import LayerNorm2d
from paredown.zoo.dit import TimeEmbed

# Width, depths (two encoders, latent, two decoders), ratio of the feed-forward (table 1).
VARIANTS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "s": (128, (5, 4, 4, 4, 4), 2),
    "b": (256, (5, 4, 4, 4, 4), 2),
    "l": (352, (9, 8, 9, 8, 9), 2),
    "xl": (416, (9, 9, 10, 9, 9), 2),
    "h": (416, (14, 12, 10, 12, 14), 4),
}
# Level (width 1, 2 or 4 times the first's) of each group of blocks.
LEVELS = (0, 1, 2, 1, 1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Maps scaled and shifted by ``(batch, channels)`` each."""
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class CompactAttention(nn.Module):
    """Channels weighted by one linear map of their means, through a sigmoid (equation 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x * self.mix(self.pool(x)).sigmoid()


class DiCoBlock(nn.Module):
    """Convolutions with compact channel attention, then a feed-forward net; both set by adaLN.

    ``attention`` False leaves the channel attention out (the ablation of table 5).
    """

    def __init__(self, channels: int, ratio: int = 2, *, attention: bool = True) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=1e-6, elementwise_affine=False)
        self.enter = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.attend = CompactAttention(channels) if attention else nn.Identity()
        self.leave = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels, eps=1e-6, elementwise_affine=False)
        self.widen = nn.Conv2d(channels, ratio * channels, 1)
        self.narrow = nn.Conv2d(ratio * channels, channels, 1)
        self.modulation = nn.Linear(channels, 6 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps and ``(batch, channels)`` to the maps' shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(
            6, 1
        )
        mixed = F.gelu(self.depthwise(self.enter(modulated(self.norm1(x), shift1, scale1))))
        x = x + gate1[:, :, None, None] * self.leave(self.attend(mixed))
        fed = self.narrow(F.gelu(self.widen(modulated(self.norm2(x), shift2, scale2))))
        return x + gate2[:, :, None, None] * fed


def shrink(channels: int) -> nn.Sequential:
    """Half the sides and twice the channels: 3x3 to half the channels, pixels unshuffled."""
    conv = nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.PixelUnshuffle(2))


def grow(channels: int) -> nn.Sequential:
    """Twice the sides and half the channels: 3x3 to twice the channels, pixels shuffled."""
    conv = nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.PixelShuffle(2))


class DiCo(ClassConditional):
    """DiCo for latents ``(batch, in_channels, h, w)``, time steps and classes ``(batch,)``.

    Sides are multiples of 4. Returns noise and, with ``learn_sigma``, as many channels of variance
    logits behind it: ``(batch, 2 * in_channels, h, w)``, zero at first. Class ``num_classes`` is
    "no class", for guidance; while training a class is replaced by it with probability
    ``class_dropout``. ``attention`` False leaves the channel attention out.
    """

    def __init__(
        self,
        channels: int = 128,
        depths: tuple[int, ...] = (5, 4, 4, 4, 4),
        ratio: int = 2,
        num_classes: int = 1000,
        in_channels: int = 4,
        *,
        learn_sigma: bool = True,
        class_dropout: float = 0.1,
        attention: bool = True,
    ) -> None:
        super().__init__(num_classes, in_channels, class_dropout)
        if len(depths) != len(LEVELS):
            raise InputError(f"DiCo has {len(LEVELS)} groups of blocks, got depths {depths}")
        widths = [channels * 2**i for i in range(3)]
        self.embed = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.times = nn.ModuleList(TimeEmbed(w) for w in widths)
        self.classes = nn.ModuleList(nn.Embedding(self.known_classes, w) for w in widths)
        self.groups = nn.ModuleList(
            nn.ModuleList(DiCoBlock(widths[at], ratio, attention=attention) for _ in range(depth))
            for at, depth in zip(LEVELS, depths, strict=True)
        )
        self.shrinks = nn.ModuleList(shrink(w) for w in widths[:2])
        self.grows = nn.ModuleList(grow(w) for w in widths[:0:-1])
        # The finest decoder keeps the second level's width.
        self.merges = nn.ModuleList(nn.Conv2d(w, widths[1], 1) for w in (widths[2], widths[1]))
        self.norm = LayerNorm2d(widths[1], eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(widths[1], 2 * widths[1])
        self.head = nn.Conv2d(widths[1], in_channels * (2 if learn_sigma else 1), 3, padding=1)
        self._init()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Noisy latents, their time steps and classes to noise (and variance logits)."""
        need_size(x, network="DiCo", multiple=4)
        y = self.told(y)
        told = [time(t) + known(y) for time, known in zip(self.times, self.classes, strict=True)]
        x, passed = self.embed(x), list[Tensor]()
        for i, (group, level) in enumerate(zip(self.groups, LEVELS, strict=True)):
            if i > 2:
                x = torch.cat((self.grows[i - 3](x), passed.pop()), 1)
                x = self.merges[i - 3](x)
            for block in group.children():
                x = block(x, told[level])
            if i < 2:
                passed.append(x)
                x = self.shrinks[i](x)
        shift, scale = self.modulation(F.silu(told[1])).chunk(2, 1)
        return self.head(modulated(self.norm(x), shift, scale))

    def _init(self) -> None:
        """Xavier for maps and convolutions, zeros where blocks start as the identity."""
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))
        embeds = [m for m in self.modules() if isinstance(m, (TimeEmbed, nn.Embedding))]
        for embed in embeds:
            for layer in (embed.fc1, embed.fc2) if isinstance(embed, TimeEmbed) else (embed,):
                nn.init.normal_(layer.weight, std=0.02)
        blocks = [m.modulation for m in self.modules() if isinstance(m, DiCoBlock)]
        for layer in (self.modulation, self.head, *blocks):
            nn.init.zeros_(layer.weight)


def dico(
    variant: str = "s", num_classes: int = 1000, in_channels: int = 4, **settings: Any
) -> DiCo:
    """A published size: s, b, l, xl or h. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("DiCo", variant, list(VARIANTS))
    return DiCo(*VARIANTS[variant], num_classes, in_channels, **settings)
