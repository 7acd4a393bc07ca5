"""Claim cards of small kernels that look wide: LSNet (arXiv:2503.23135), PATNet (2503.03148)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.act import gelu
from paredown.nn.dynamic import dynamic_depthwise
from paredown.nn.norm import replace_norms
from paredown.nn.partial import PartialConv
from paredown.papers.cards._nets import IMAGE, SCANS, apart, images, merged_apart, scans
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.papers.cards.networks import graph_of
from paredown.zoo.fasternet import FasterNet
from paredown.zoo.lsnet import LSConv, LSNet
from paredown.zoo.patnet import PartialAttentionConv, PATNet
from paredown.zoo.patnet import Plan as PatPlan


def small_ls(name: str) -> nn.Module:
    """Three stages whose odd blocks are LS convolutions, or static ones in their place."""
    model = LSNet(
        (24, 32, 48),
        (2, 2, 1),
        10,
        1,
        num_heads=3,
        image_size=IMAGE,
        large=name != "static 3x3",
        stem_stride=4,
    )
    if name == "static 7x7":
        replace_norms(model, LSConv, lambda m: StaticConv(m.norm.num_features))
    return model


class StaticConv(nn.Module):
    """A 7x7 depthwise convolution and a norm on a residual, in place of an LS convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.norm(self.conv(x))


def merged_ls() -> float:
    """LSNet off its folded form."""
    torch.manual_seed(0)
    return merged_apart(small_ls("LS"), IMAGE)


def constant_kernels() -> float:
    """The dynamic convolution with one kernel everywhere, off a depthwise convolution."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 9, 7), torch.randn(4, 9)
    everywhere = weight[None, :, :, None, None].expand(2, -1, -1, 9, 7)
    static = weight.reshape(4, 1, 3, 3).repeat(4, 1, 1, 1)
    return apart(dynamic_depthwise(x, everywhere), F.conv2d(x, static, padding=1, groups=16))


class ByTap(nn.Module):
    """The dynamic convolution of the package: one pass per tap."""

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Maps and kernels to maps."""
        return dynamic_depthwise(x, kernels)


class ByUnfolding(nn.Module):
    """The same by unfolding the neighbourhoods first."""

    def forward(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Maps and kernels to maps."""
        batch, channels, h, w = x.shape
        shared, taps = kernels.shape[1:3]
        near = F.unfold(x, 3, padding=1).reshape(batch, channels // shared, shared, taps, h, w)
        return (near * kernels[:, None]).sum(3).reshape(x.shape)


def aggregations() -> list[Subject]:
    """The second stage of LSNet-T's 28 x 28 maps at batch 4."""
    x, kernels = torch.randn(4, 64, 28, 28), torch.randn(4, 8, 9, 28, 28)
    return [("unfolded", ByUnfolding(), (x, kernels)), ("by taps", ByTap(), (x, kernels))]


LS_PAIR = (("MobileNetV2", "mobilenetv2"), ("LSNet-T", "lsnet-t"))


class LSNetCard(ArchitectureCard):
    """Counts, folding, the aggregation's time, and LS convolutions against static ones."""

    key = "lsnet"
    claim = (
        "small dynamic kernels predicted from a large look beat static ones, at 74.9 % of ImageNet "
        "for 0.3 GMAC and with high throughput"
    )
    rows = ("lsnet-t", "lsnet-s", "lsnet-b")
    exact = (
        Exact("folded network, off the branched one", merged_ls, 1e-4),
        Exact("one kernel everywhere, off a depthwise convolution", constant_kernels),
    )
    timings = (
        Timing(aggregations, (), "by taps", "unfolded", 0.5),
        Timing(zoo_pair, (*LS_PAIR, 224), "LSNet-T", "MobileNetV2", 1.0),
    )
    trained = Trained(
        scans, small_ls, images(1, 1, IMAGE, IMAGE), SCANS, seeds={"quick": 4, "full": 10}
    )
    learnt = (learns("LS", 0.75), better("LS", "static 3x3"), better("LS", "static 7x7"))


def small_pat(name: str) -> nn.Module:
    """Four stages with attention on the channels left (PAT), or with them idle (FasterNet)."""
    if name == "FasterNet":
        return FasterNet(18, (1, 1, 2, 1), 10, 1, features=64, act=gelu)
    return PATNet(PatPlan(16, (1, 1, 2, 1), gelu, True, 4), 10, 1, features=64)


def idle_attention() -> float:
    """A partial attention convolution whose attention passes, off a partial convolution."""
    torch.manual_seed(0)
    ours, plain, x = PartialAttentionConv(16), PartialConv(16), torch.randn(2, 16, 9, 7)
    plain.conv.weight = ours.conv.weight
    ours.attend = nn.Sequential()
    with torch.inference_mode():
        return apart(ours(x), plain(x))


def partial_share() -> float:
    """MACs of a partial convolution over a whole one's, off 1 / 16."""
    x = torch.zeros(1, 64, 14, 14)
    whole = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    return abs(graph_of(PartialConv(64), *x.shape).macs / graph_of(whole, *x.shape).macs - 1 / 16)


PAT_PAIR = (("FasterNet-T2", "fasternet-t2"), ("PATNet-T2", "patnet-t2"))


class PATNetCard(ArchitectureCard):
    """What a partial convolution is and costs; time and accuracy beside FasterNet's.

    No table of the paper could be read, so nothing published is held against our counts.
    """

    key = "patnet"
    claim = (
        "attention on the channels that a partial convolution leaves idle is 1.3 points better "
        "than FasterNet-T2 and takes 24 % less time on a CPU"
    )
    exact = (
        Exact("with attention passing, off a partial convolution", idle_attention, 0.0),
        Exact("work of a partial convolution, off 1/16", partial_share, 0.0),
    )
    work = (Work("PAT", "FasterNet", 1.02),)
    timings = (Timing(zoo_pair, (*PAT_PAIR, 224), "PATNet-T2", "FasterNet-T2", 1.0),)
    trained = Trained(scans, small_pat, images(1, 1, IMAGE, IMAGE), SCANS)
    learnt = (learns("PAT", 0.75), better("PAT", "FasterNet"))
