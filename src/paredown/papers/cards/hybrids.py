"""Claim cards of convolution and attention: MetaMixer (arXiv:2406.02021), MOAT (2210.01820)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.nn import reparameterise
from paredown.nn.act import gelu
from paredown.nn.conv import ConvNormAct
from paredown.nn.mlp import Mlp
from paredown.nn.norm import replace_norms
from paredown.nn.transformer import SelfAttention
from paredown.papers.cards._nets import IMAGE, SCANS, apart, images, lively, merged_apart, scans
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo.ffnet import FFNet, TokenMixer
from paredown.zoo.moat import MOAT, MOATBlock, MobileConv, RelativeAttention


class MapAttention(SelfAttention):
    """Self-attention over all pixels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        out = super().forward(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).reshape(x.shape)


def small_meta(name: str) -> nn.Module:
    """Two stages whose token mixers are FFN-ified, linear (no activation) or self-attention."""
    act = nn.Identity if name == "linear" else gelu
    model = FFNet((24, 48), (2, 2), 10, 1, mixers=(3, 7), stem=16, act=act)
    if name == "attention":
        replace_norms(
            model, TokenMixer, lambda m: MapAttention(m.query.branches[0][0].out_channels, 3)
        )
    return model


def folded_meta() -> float:
    """FFNet off its folded form."""
    torch.manual_seed(0)
    return merged_apart(small_meta("FFN-ified"), IMAGE)


def mixers(side: int) -> list[Subject]:
    """Token mixers of FFNet-1's third stage: attention and the FFN-ified one, folded."""
    x = torch.randn(1, 320, side, side)
    folded = reparameterise(lively(TokenMixer(320, 7)))
    return [("attention", MapAttention(320, 10), (x,)), ("FFN-ified", folded, (x,))]


FF_PAIR = (("unfolded", "ffnet-1"), ("folded", "ffnet-1-folded"))


class MetaMixerCard(ArchitectureCard):
    """Counts and folding; FFN-ified mixers against attention and against linear ones."""

    key = "metamixer-ffnet"
    claim = (
        "convolution and GELU in the skeleton of query, key and value do what self-attention does, "
        "at less latency (FFNet-1: 81.3 % of ImageNet in 1.8 ms on a phone)"
    )
    rows = tuple(f"ffnet-{i}-folded" for i in (1, 2, 3))
    exact = (Exact("folded network, off the branched one", folded_meta, 1e-4),)
    work = (Work("FFN-ified", "attention", 1.0, of="params"),)
    timings = (
        Timing(zoo_pair, (*FF_PAIR, 224), "folded", "unfolded", 1.0),
        Timing(mixers, (16,), "FFN-ified", "attention", 1.0),
    )
    trained = Trained(
        scans, small_meta, images(1, 1, IMAGE, IMAGE), SCANS, seeds={"quick": 3, "full": 10}
    )
    learnt = (
        learns("FFN-ified", 0.75),
        better("FFN-ified", "attention", -0.01),
        better("FFN-ified", "linear"),
    )


CHANNELS, WINDOW, HEAD = 32, 4, 16


class AttentionMlp(nn.Module):
    """The transformer's block on maps: attention in windows, then an MLP of 4C + 24 hidden units.

    The 24 bring its parameters to those of a mobile convolution in the MLP's place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = RelativeAttention(channels, WINDOW, head_dim=HEAD)
        self.mlp = Mlp(channels, 4 * channels + 24)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = x.permute(0, 2, 3, 1)
        y = y + self.attention(self.norm1(y))
        return (y + self.mlp(self.norm2(y))).permute(0, 3, 1, 2)


class AttentionConv(nn.Module):
    """MOAT's two parts in the other order: attention, then the mobile convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = RelativeAttention(channels, WINDOW, head_dim=HEAD)
        self.conv = MobileConv(channels, channels, squeeze=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        y = x.permute(0, 2, 3, 1)
        return self.conv((y + self.attention(self.norm(y))).permute(0, 3, 1, 2))


def small_moat(name: str) -> nn.Module:
    """Three blocks on an 8 x 8 map under 4 x 4 windows that are not shifted."""

    def block() -> nn.Module:
        if name == "MOAT":
            return MOATBlock(CHANNELS, CHANNELS, WINDOW, head_dim=HEAD)
        return AttentionMlp(CHANNELS) if name == "attention, MLP" else AttentionConv(CHANNELS)

    return nn.Sequential(
        ConvNormAct(1, 16, 3, stride=2),
        ConvNormAct(16, CHANNELS, 3, stride=2),
        *(block() for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.LayerNorm(CHANNELS),
        nn.Linear(CHANNELS, 10),
    )


def whole_window() -> float:
    """MOAT with windows that cover its maps, off the one with global attention."""

    def net(windows: tuple[int, int] | None) -> nn.Module:
        torch.manual_seed(0)
        return MOAT(
            8,
            (8, 8, 16, 32),
            (1, 1, 2, 1),
            5,
            1,
            image_size=64,
            head_dim=8,
            windows=windows,
        ).eval()

    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        return apart(net((4, 2))(x), net(None)(x))


MOAT_PAIR = (("ConvNeXt-T", "convnext-tiny"), ("MOAT-0", "moat-0"))


class MOATCard(ArchitectureCard):
    """Counts, windows that cover the map, and the order of convolution and attention."""

    key = "moat"
    claim = (
        "a mobile convolution before attention, in the MLP's place, is better than attention with "
        "an MLP and lets windows do without shifting (MOAT-0: 83.3 % for 5.7 GMAC)"
    )
    rows = ("moat-tiny-0", "moat-tiny-1", "moat-tiny-2", "moat-tiny-3", "moat-0", "moat-1")
    errors = (0.01, 0.01)
    exact = (Exact("windows over the whole map, off global attention", whole_window, 0.0),)
    work = (Work("MOAT", "attention, MLP", 1.02, of="params"),)
    timings = (Timing(zoo_pair, (*MOAT_PAIR, 224), "MOAT-0", "ConvNeXt-T", 1.0, per_mac=True),)
    trained = Trained(
        scans, small_moat, images(1, 1, IMAGE, IMAGE), SCANS, seeds={"quick": 3, "full": 10}
    )
    learnt = (
        learns("MOAT", 0.75),
        better("MOAT", "attention, MLP"),
        better("MOAT", "attention, conv", -0.005),
    )
