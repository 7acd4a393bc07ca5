"""Small networks of unlike operators that paredown makes up: what these cost beside each other."""

from __future__ import annotations

from random import Random

from torch import Tensor, nn
from torch.nn import functional as F

from paredown.measure.generate_parts import (
    Drawn,
    draw_size,
    draw_width,
    noise,
)


class Block(nn.Module):
    """A transformer block, norms first, ``(batch, tokens, width)``."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        b, n, c = x.shape
        parts = self.into(self.norms[0](x)).view(b, n, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norms[1](x))


class Inverted(nn.Module):
    """Expand, convolve by channel, project, add: ``(batch, channels, h, w)`` stays."""

    def __init__(self, channels: int, ratio: int, kernel: int, act: type[nn.Module]) -> None:
        super().__init__()
        wide = channels * ratio
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.body(x)


class Residual(nn.Module):
    """Two 3x3 convolutions with norms, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        made = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(
            made[0], nn.BatchNorm2d(channels), nn.ReLU(), made[1], nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return F.relu(x + self.body(x))


def draw_mixed(r: Random, i: int) -> Drawn:
    """Small networks: three stages of blocks that narrow the image, or blocks of a transformer."""
    batch = r.choice((1, 1, 1, 4))
    if i % 3 == 0:
        heads, tokens = draw_size(r, 2, 12), r.choice((1, 8, 50, 64, 128, 197))
        width = heads * r.choice((32, 64))
        blocks: list[nn.Module] = [Block(width, heads, 4 * width) for _ in range(6)]
        return [*blocks, nn.LayerNorm(width)], noise(batch, tokens, width)
    side, channels = r.choice((28, 48, 56)), draw_width(r, 16, 48)
    layers: list[nn.Module] = []
    act = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6)[i % 4]
    for stage in range(3):
        layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)] if stage else []
        channels *= 2 if stage else 1
        layers += [nn.BatchNorm2d(channels), act()]
        for _ in range(3):
            one = Inverted(channels, 4, r.choice((3, 5)), act) if i % 3 == 1 else Residual(channels)
            layers.append(one)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return [*layers, *tail], noise(batch, channels // 4, side, side)
