"""The convolutional auto-encoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

The baseline of visual tokenizers: factor 8, four latent channels, as released with Stable
Diffusion. Its adversarial and perceptual losses are left out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.features import need_size


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of 32 groups, or one where the channels do not divide."""
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU and a 3x3 convolution, twice, beside the input (or a 1x1 convolution of it)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class PixelAttention(nn.Module):
    """One head of attention over all pixels, on a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        tokens = self.norm(x).flatten(2).mT.unsqueeze(1)
        out = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return x + self.proj(out).squeeze(1).mT.unflatten(2, x.shape[2:])


class Halve(nn.Module):
    """A 3x3 convolution at stride 2, padded on the right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to half the sides."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Every pixel four times, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to twice the sides."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> list[nn.Module]:
    """What both halves have at the lowest resolution."""
    block = ResidualBlock
    return [block(channels, channels), PixelAttention(channels), block(channels, channels)]


class SdVae(nn.Module):
    """Auto-encoder for images ``(batch, in_channels, h, w)`` with sides in multiples of 8.

    Returns the images again; while training ``(images, mean, logvar)``, the images from a sample of
    the latent code ``(batch, latent, h / 8, w / 8)``. ``encode`` and ``decode`` are the halves.
    """

    def __init__(
        self,
        in_channels: int = 3,
        latent: int = 4,
        widths: tuple[int, ...] = (128, 256, 512, 512),
        depth: int = 2,
    ) -> None:
        super().__init__()
        if depth < 1 or not widths:
            raise InputError("an auto-encoder needs at least one level of one block")
        self.factor = 2 ** (len(widths) - 1)
        down: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        before = widths[0]
        for i, width in enumerate(widths):
            down += [ResidualBlock(before if k == 0 else width, width) for k in range(depth)]
            before = width
            if i + 1 < len(widths):
                down.append(Halve(width))
        head = nn.Conv2d(before, 2 * latent, 3, padding=1)
        self.encoder = nn.Sequential(*down, *middle(before), norm(before), nn.SiLU(), head)
        self.moments = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.latents = nn.Conv2d(latent, latent, 1)
        up: list[nn.Module] = [nn.Conv2d(latent, before, 3, padding=1), *middle(before)]
        for width, after in pairwise([*reversed(widths), 0]):
            up += [ResidualBlock(before if k == 0 else width, width) for k in range(depth + 1)]
            before = width
            if after:
                up.append(Double(width))
        head = nn.Conv2d(before, in_channels, 3, padding=1)
        self.decoder = nn.Sequential(*up, norm(before), nn.SiLU(), head)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Images to images through the latent code."""
        mean, logvar = self.encode(x)
        if not self.training:
            return self.decode(mean)
        sample = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self.decode(sample), mean, logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent code, ``(batch, latent, h / 8, w / 8)`` each."""
        need_size(x, network="The auto-encoder", multiple=self.factor)
        mean, logvar = self.moments(self.encoder(x)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, code: Tensor) -> Tensor:
        """A code ``(batch, latent, h, w)`` to images of 8 times the sides."""
        return self.decoder(self.latents(code))
