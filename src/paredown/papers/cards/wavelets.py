"""Claim card of the scattering vision transformer, SVT (arXiv:2311.01310)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.transformer import CrossAttention
from paredown.nn.wavelet import DualTree
from paredown.papers.cards._nets import IMAGE, SCANS, apart, images, scans
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo.svt import Block, Entry, GlobalAttention, Scattering


class PooledAttention(GlobalAttention):
    """All pixels over a map averaged 2 x 2, which loses what is finer."""

    def forward(self, asking: Tensor, asked: Tensor | None = None) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        small = F.avg_pool2d(asking.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        tokens, few = asking.flatten(1, 2), small.flatten(1, 2)
        return CrossAttention.forward(self, tokens, few).reshape(asking.shape)


class SmallSVT(nn.Module):
    """An early block on 16 x 16 tokens, one of attention on 8 x 8; mean, linear.

    Attention has fewer parameters than scattering, so its early MLPs are wider.
    """

    def __init__(self, name: str, channels: int = 16) -> None:
        super().__init__()
        side, wide = IMAGE // 2, 2 * channels

        def early() -> nn.Module:
            if name == "scattering":
                return Block(channels, Scattering(channels, side), 4)
            kind = PooledAttention if name == "pooled attention" else GlobalAttention
            return Block(channels, kind(channels, 2), 9)

        self.body = nn.Sequential(Entry(1, channels), early(), ToMaps())
        self.late = nn.Sequential(Entry(channels, wide), Block(wide, GlobalAttention(wide, 2), 4))
        self.norm, self.head = nn.LayerNorm(wide), nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.norm(self.late(self.body(x))).mean((1, 2)))


class ToMaps(nn.Module):
    """Channels first again."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to ``(batch, channels, h, w)``."""
        return x.permute(0, 3, 1, 2)


def open_gate() -> float:
    """Scattering with a gate of ones and no blending, off the identity."""
    torch.manual_seed(0)
    mixer, x = Scattering(8, 12), torch.randn(2, 12, 12, 8)
    nn.init.ones_(mixer.gate)
    with torch.inference_mode():
        return apart(mixer(x, blended=False), x)


def shift_sensitivity() -> float:
    """How the bands' energies of edges change under a shift by one pixel, over Haar's bands.

    |changes| over energies, summed over the bands of 32 straight edges at random angles.
    """
    generator, tree = torch.Generator().manual_seed(0), DualTree()
    angle, place = (torch.rand(32, 1, 1, 1, generator=generator) for _ in range(2))
    at = torch.arange(64.0) - 32
    line = (math.pi * angle).cos() * at[:, None] + (math.pi * angle).sin() * at
    x = (line > 16 * (place - 0.5)).float()
    moved = torch.cat((x[..., :1], x[..., :-1]), 3)

    def dual(image: Tensor) -> Tensor:
        return tree(image)[1].square().sum((0, 4, 5))

    def haar(image: Tensor) -> Tensor:
        low, high = (image[..., ::2] + s * image[..., 1::2] for s in (1, -1))
        fine = (
            low[..., ::2, :] - low[..., 1::2, :],
            *(high[..., ::2, :] + s * high[..., 1::2, :] for s in (1, -1)),
        )
        return torch.stack([f.square().sum((2, 3)) for f in fine], 2)

    changes = [float((f(moved) - f(x)).abs().sum() / f(x).sum()) for f in (dual, haar)]
    return changes[0] / changes[1]


def early_mixers() -> list[Subject]:
    """The first stage's token mixers at the paper's size: 56 x 56 maps of 64 channels."""
    x = torch.randn(1, 56, 56, 64)
    return [("attention", GlobalAttention(64, 2), (x,)), ("scattering", Scattering(64, 56), (x,))]


class SVTCard(ArchitectureCard):
    """Counts (parameters), reconstruction and shifts; scattering against attention."""

    key = "svt"
    claim = (
        "mixing tokens in a wavelet domain in the early stages is as good as attention for less "
        "work, and better than attention over pooled maps, which loses detail"
    )
    rows = ("svt-h-s", "svt-h-b", "svt-h-l")
    errors = (0.005, None)
    exact = (
        Exact("open gate without blending, off the identity", open_gate),
        Exact("bands' change under a shift, over a decimated transform's", shift_sensitivity, 1.0),
    )
    work = (
        Work("scattering", "attention", 1.05, of="params"),
        Work("scattering", "attention", 1.0),
    )
    timings = (Timing(early_mixers, (), "scattering", "attention", 1.0),)
    trained = Trained(
        scans,
        SmallSVT,
        images(1, 1, IMAGE, IMAGE),
        SCANS | {"quick": replace(SCANS["quick"], noise=0.2)},
        seeds={"quick": 3, "full": 10},
    )
    learnt = (
        learns("scattering", 0.75),
        better("scattering", "attention", -0.005),
        better("scattering", "pooled attention"),
    )
