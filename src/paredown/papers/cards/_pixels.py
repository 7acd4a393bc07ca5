"""8 x 8 digits for generators: a pixel-token transformer, a small diffusion model, their distance.

Language-style: a decoder over 64 pixels of 17 levels in raster order. Diffusion-style: a DiT.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.diffusion import Diffusion
from paredown.nn.transformer import EncoderBlock, SelfAttention
from paredown.papers.cards.generation import digits, frechet
from paredown.workloads.digits import CLASSES
from paredown.workloads.fit import Phase, fit
from paredown.zoo.dit import DiT

LEVELS, PIXELS = 17, 64
PROCESS = Diffusion(200, 1e-3, 5e-2)
Keys = list[tuple[Tensor, Tensor]]


class CausalAttention(SelfAttention):
    """Every token looks at itself and those before it; ``past`` are keys and values of these."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads)
        self.past: tuple[Tensor, Tensor] | None = None
        self.keeps = False

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, channels)`` to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.past is not None:
            k, v = torch.cat((self.past[0], k), 2), torch.cat((self.past[1], v), 2)
        if self.keeps:
            self.past = k, v
        out = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class PixelTransformer(nn.Module):
    """Logits ``(batch, 64, 17)`` of every pixel from the class and the pixels before it.

    Tokens ``(batch, 64)``: the class plus 17, then the first 63 pixels' levels.
    """

    def __init__(self, channels: int, depth: int, num_heads: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LEVELS + CLASSES, channels)
        self.position = nn.Parameter(torch.zeros(PIXELS, channels))
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(channels, num_heads, mixer=CausalAttention(channels, num_heads))
                for _ in range(depth)
            )
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, LEVELS)
        for p in (self.tokens.weight, self.position):
            nn.init.normal_(p, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to logits."""
        return self._logits(self.tokens(tokens) + self.position)

    @torch.no_grad()
    def sample(self, classes: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(batch, 64)`` of these classes and their logits; ``noise`` is Gumbel's.

        A token is the largest sum of logit and noise: a sample, the same draws for any network.
        """
        attentions = [m for m in self.modules() if isinstance(m, CausalAttention)]
        token, chosen, logits = classes + LEVELS, list[Tensor](), list[Tensor]()
        for m in attentions:
            m.keeps = True
        for i in range(PIXELS):
            one = self._logits((self.tokens(token) + self.position[i]).unsqueeze(1))[:, 0]
            token = (one + noise[:, i]).argmax(-1)
            chosen.append(token)
            logits.append(one)
        for m in attentions:
            m.keeps, m.past = False, None
        return torch.stack(chosen, 1), torch.stack(logits, 1)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)))


def sequences(held_out: bool) -> tuple[Tensor, Tensor]:
    """Tokens that go in and pixels that are to come out, ``(scans, 64)`` each."""
    images, labels = digits(held_out)
    pixels = ((images + 1) * 8).round().long().flatten(1)
    return torch.cat(((labels + LEVELS).unsqueeze(1), pixels[:, :-1]), 1), pixels


def pictures(pixels: Tensor) -> Tensor:
    """Levels ``(batch, 64)`` to images ``(batch, 1, 8, 8)`` in -1..1."""
    return pixels.reshape(-1, 1, 8, 8) / 8 - 1


class Sequences:
    """One epoch of ``((tokens,), pixels)``; the order is drawn from torch's global generator."""

    def __init__(self, batch: int) -> None:
        self.tokens, self.pixels = sequences(held_out=False)
        self.batch = batch

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches; a last short one is left out."""
        order = torch.randperm(len(self.tokens))
        for start in range(0, len(order) - self.batch + 1, self.batch):
            pick = order[start : start + self.batch]
            yield (self.tokens[pick],), self.pixels[pick]


def next_pixel(logits: Tensor, pixels: Tensor) -> Tensor:
    """Cross-entropy of every pixel."""
    return F.cross_entropy(logits.flatten(0, 1), pixels.flatten())


def small_dit(channels: int, depth: int) -> DiT:
    """A diffusion transformer of 16 patches."""
    return DiT(channels, depth, 2, CLASSES, 1, image_size=8, patch=2, learn_sigma=False)


@torch.no_grad()
def denoised(model: nn.Module, classes: Tensor, noise: Tensor, steps: int) -> list[Tensor]:
    """The samples after every step of DDIM, from noise ``(batch, 1, 8, 8)`` to images."""
    times = [*PROCESS.times(steps), -1]
    path = [noise]
    for t, before in pairwise(times):
        at = torch.full((len(noise),), t)
        path.append(PROCESS.step(path[-1], model(path[-1], at, classes), t, before))
    return path


@cache
def judge() -> tuple[nn.Module, Tensor]:
    """A small classifier's features of images, and those of the held-out scans."""
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 24),
    )
    images, labels = digits(held_out=False)

    def batches() -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for pick in torch.randperm(len(images)).split(48):
            yield (images[pick],), labels[pick]

    classifier = nn.Sequential(features, nn.ReLU(), nn.Linear(24, CLASSES))
    # Whoever asks first may do so where gradients are off.
    with torch.enable_grad():
        fit(classifier, [Phase(batches, 12)])
    with torch.no_grad():
        return features.eval(), features(digits(held_out=True)[0])


def distance(images: Tensor) -> float:
    """Fréchet distance of images from held-out scans over the classifier's features."""
    features, wanted = judge()
    with torch.no_grad():
        return frechet(features(images.clamp(-1, 1)), wanted)
