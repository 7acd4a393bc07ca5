"""DRCT: super-resolution with dense connections inside groups (Hsu et al. 2024, arXiv:2404.00722).

Each Swin layer of a group reads all earlier ones' narrow outputs, so spatial detail is not squeezed
out towards the end of the network, which :func:`intensities` measures.

Deviation: images whose sides the window does not divide are padded inside the attention (the
authors pad the image before the network).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.drop import rising_rates
from paredown.zoo.swin import SwinBlock

# Groups (released configurations DRCT and DRCT-L).
VARIANTS: dict[str, int] = {"base": 6, "l": 12}
# Mean colour of DIV2K, subtracted at the entry.
MEAN = (0.4488, 0.4371, 0.4040)


def heads_for(width: int, heads: int) -> int:
    """Heads of a layer of this width: ``heads`` less the remainder (authors' code)."""
    return heads - width % heads


class DenseGroup(nn.Module):
    """Five Swin layers, each reading the group's input and all earlier outputs (RDG, figure 4).

    ``x + 0.2 * last``: with the last 1x1 convolution at zero the group is the identity.
    """

    def __init__(
        self,
        channels: int,
        growth: int,
        num_heads: int,
        window: int,
        size: tuple[int, int],
        *,
        mlp_ratio: float = 2.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [channels + i * growth for i in range(5)]
        self.layers = nn.ModuleList(
            SwinBlock(
                width,
                heads_for(width, num_heads),
                window,
                shift=window // 2 if i % 2 else 0,
                size=size,
                mlp_ratio=mlp_ratio if i < 3 else 1.0,
                drop=drop,
            )
            for i, width in enumerate(widths)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(width, growth if i < 4 else channels, 1) for i, width in enumerate(widths)
        )
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        seen, last = [x], len(self.layers) - 1
        for i, (layer, narrow) in enumerate(zip(self.layers, self.narrow, strict=True)):
            out = layer(torch.cat(seen, -1)).permute(0, 3, 1, 2)
            out = narrow(out).permute(0, 2, 3, 1)
            seen.append(self.act(out) if i < last else out)
        return x + 0.2 * seen[-1]


def upsampler(channels: int, scale: int) -> nn.Sequential:
    """Convolutions and pixel shuffles to ``scale`` times the sides; ``InputError`` but for 2, 3, 4.

    By 3 at once, by 2 and 4 in steps of 2.
    """
    if scale not in (2, 3, 4):
        raise InputError(f"DRCT enlarges by 2, 3 or 4, got {scale}")
    step, times = (3, 1) if scale == 3 else (2, scale // 2)
    layers: list[nn.Module] = []
    for _ in range(times):
        layers += [nn.Conv2d(channels, channels * step**2, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


class DRCT(nn.Module):
    """DRCT for ``(batch, in_channels, h, w)`` images of any size, in [0, 1].

    Returns images of ``scale`` times the sides. Masks of shifted windows are made once for
    ``image_size``, anew for other sizes.
    """

    def __init__(
        self,
        groups: int = 6,
        in_channels: int = 3,
        *,
        scale: int = 4,
        width: int = 180,
        growth: int = 32,
        num_heads: int = 6,
        window: int = 16,
        mlp_ratio: float = 2.0,
        image_size: int = 64,
        features: int = 64,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        mean = MEAN if in_channels == 3 else (0.0,) * in_channels
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.shallow = nn.Conv2d(in_channels, width, 3, padding=1)
        self.embed_norm = nn.LayerNorm(width)
        # The authors give each group the first of its six places on the rising line.
        rates = rising_rates(drop, 6 * groups)[::6]
        size = (image_size, image_size)
        self.groups = nn.ModuleList(
            DenseGroup(width, growth, num_heads, window, size, mlp_ratio=mlp_ratio, drop=rate)
            for rate in rates
        )
        self.norm = nn.LayerNorm(width)
        self.after = nn.Conv2d(width, width, 3, padding=1)
        self.before = nn.Sequential(nn.Conv2d(width, features, 3, padding=1), nn.LeakyReLU())
        self.grow = upsampler(features, scale)
        self.last = nn.Conv2d(features, in_channels, 3, padding=1)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=0.02)
                nn.init.zeros_(m.bias)

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Low-resolution images to high-resolution ones."""
        shallow, maps = self._maps(x)
        deep = self.after(self.norm(maps[-1]).permute(0, 3, 1, 2)) + shallow
        return self.last(self.grow(self.before(deep))) + self.mean

    def intensities(self, x: Tensor) -> Tensor:
        """Mean over images of the largest absolute feature behind each group: ``(groups,)``.

        The paper's probe of an information bottleneck (figure 2): intensity that falls towards the
        last groups.
        """
        _, maps = self._maps(x)
        return torch.stack([m.abs().flatten(1).amax(1).mean() for m in maps])

    def _maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The shallow map and every group's output, channels last."""
        shallow = self.shallow(x - self.mean)
        out, maps = self.embed_norm(shallow.permute(0, 2, 3, 1)), list[Tensor]()
        for group in self.groups:
            out = group(out)
            maps.append(out)
        return shallow, maps


def drct(variant: str = "base", in_channels: int = 3, **settings: Any) -> DRCT:
    """A released configuration: base or l. Raises ``UnknownName`` for another."""
    if variant not in VARIANTS:
        raise UnknownName("DRCT", variant, list(VARIANTS))
    return DRCT(VARIANTS[variant], in_channels, **settings)
