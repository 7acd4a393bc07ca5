"""The networks that conformance tests run on: a small CNN, ViT and decoder, with seeded data.

Each is a plain workload: calibration, training data and a judge included, so that every technique
finds what it needs. Weights are random but spread, so that outputs differ between inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import UnknownName
from paredown.nn.transformer import EncoderBlock
from paredown.workload import TrainingData, Workload


class Inverted(nn.Module):
    """Expand, depthwise, project; the residual where shapes agree (MobileNetV2's block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand, self.n1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depth = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.n2 = nn.BatchNorm2d(wide)
        self.project, self.n3 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to the same shape."""
        y = F.relu6(self.n1(self.expand(x)))
        return x + self.n3(self.project(F.relu6(self.n2(self.depth(y)))))


class CNN(nn.Module):
    """A stem, a widening convolution, an inverted residual, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = (
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
        )
        self.body = nn.Conv2d(32, 48, 3, padding=1)
        self.block = Inverted(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, 10)`` logits."""
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.block(F.relu(self.body(x))).mean((2, 3)))


class ViT(nn.Module):
    """Patches, two encoder blocks, mean, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 48, 4, stride=4)
        self.place = nn.Parameter(torch.zeros(1, 16, 48))
        self.blocks = nn.ModuleList(EncoderBlock(48, 4, 2.0) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, 16, 16)`` to ``(batch, 10)`` logits."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Grouped(nn.Module):
    """Causal attention with fewer key heads than query heads, rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, kv_heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        rate = 100.0 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle = torch.outer(torch.arange(tokens), rate).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same shape."""
        b, n, _ = x.shape
        q = self._turn(self.q(x).view(b, n, self.heads, self.head_dim).transpose(1, 2))
        k = self._turn(self.k(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2))
        v = self.v(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        again = self.heads // self.kv_heads
        k, v = k.repeat_interleave(again, 1), v.repeat_interleave(again, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))

    def _turn(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat([-right, left], -1) * self.sin


class DecoderLayer(nn.Module):
    """Pre-norm attention and a gated feed-forward."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn = Grouped(width, 4, 2, tokens)
        self.gate, self.up = nn.Linear(width, 96, bias=False), nn.Linear(width, 96, bias=False)
        self.down = nn.Linear(96, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same shape."""
        x = x + self.attn(self.n1(x))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Embedding, two layers, tied output head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 48)
        self.layers = nn.ModuleList(DecoderLayer(48, 12) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(48), nn.Linear(48, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """``(batch, 12)`` token ids to ``(batch, 12, 64)`` logits."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def _images(n: int) -> list[Tensor]:
    gen = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 16, 16, generator=gen) for _ in range(n)]


def _ids(n: int) -> list[Tensor]:
    gen = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (8, 12), generator=gen) for _ in range(n)]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Tensor]]]] = {
    "cnn": (CNN, _images),
    "vit": (ViT, _images),
    "decoder": (Decoder, _ids),
}
"""Name -> how to build the module, how to draw that many batches."""


def build(name: str) -> Workload:
    """A fresh workload of one of the `NETWORKS`, the same on every call."""
    if name not in NETWORKS:
        raise UnknownName("conformance network", name, list(NETWORKS))
    cls, draw = NETWORKS[name]
    batches = draw(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls().eval()
        _spread(model)
    with torch.no_grad():
        labels = [model(x).argmax(-1) for x in batches]
    held, answer = batches[-1], labels[-1]

    def evaluate(candidate: nn.Module) -> Tensor:
        with torch.no_grad():
            return (candidate(held).argmax(-1) == answer).float().flatten()

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, -2), target.flatten())

    pairs: list[tuple[tuple[Any, ...], Any]] = [
        ((x,), y) for x, y in zip(batches[:4], labels[:4], strict=True)
    ]
    return Workload(
        model,
        (batches[0],),
        name=name,
        calibration=batches[:4],
        evaluate=evaluate,
        training=TrainingData(lambda: pairs, loss),
        scale=1.0,
        original=model,
    )


def _spread(model: nn.Module) -> None:
    """Statistics and scales that are not one and zero, as a trained network has them."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.uniform_(m.bias, -0.3, 0.3)
        elif isinstance(m, (nn.LayerNorm, nn.RMSNorm)):
            nn.init.uniform_(m.weight, 0.7, 1.3)
