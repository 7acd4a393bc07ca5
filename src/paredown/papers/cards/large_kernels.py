"""Claim cards of large kernels: UniRepLKNet (arXiv:2410.08049) and OverLoCK (2502.20087)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.reparam import DilatedReparamConv
from paredown.papers.cards._nets import (
    IMAGE,
    SHORT_SCANS,
    apart,
    images,
    merged_apart,
    opened,
    scans,
)
from paredown.papers.cards._parts import Exact, Timing, Trained, Work, better, learns
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo._contmix import ContMix
from paredown.zoo.overlock import FocusBlock, OverLoCK, Plan
from paredown.zoo.unireplknet import UniRepLKNet

LARGE, DEEP = ((13,), (13,)), ((3, 3), (3, 3, 3))


def small_lark(name: str) -> nn.Module:
    """Two stages: one block of 13x13 each (with branches or without), or two and three of 3x3."""
    model = opened(UniRepLKNet((16, 32), DEEP if "3x3" in name else LARGE, 10, 1, stride=2))
    for m in model.modules():
        if name.endswith("no branches") and isinstance(m, DilatedReparamConv):
            m.small = nn.ModuleList()
    return model


def merged_lark() -> float:
    """UniRepLKNet with 13 x 13 kernels off its merged form."""
    torch.manual_seed(0)
    return merged_apart(small_lark("13x13"), 32)


def reach(kernels: tuple[tuple[int, ...], ...]) -> float:
    """Radius of the effective receptive field in pixels, untrained: the spread of |gradient|.

    Of the sum of the last map's centre, over the input; a mean over eight noise images.
    """
    torch.manual_seed(0)
    net = opened(UniRepLKNet((16, 32), kernels, 10, 1, stride=2, features_only=True)).eval()
    x = torch.randn(8, 1, 96, 96, requires_grad=True)
    last = net(x)[-1]
    last[:, :, last.shape[2] // 2, last.shape[3] // 2].sum().backward()
    assert x.grad is not None
    mass = x.grad.abs().mean((0, 1))
    at = torch.arange(96.0)
    row, column = torch.meshgrid(at, at, indexing="ij")
    centre = ((mass * row).sum() / mass.sum(), (mass * column).sum() / mass.sum())
    square = (row - centre[0]) ** 2 + (column - centre[1]) ** 2
    return float(((mass * square).sum() / mass.sum()).sqrt())


def reach_ratio() -> float:
    """The few large kernels' radius over the deeper network's of 3x3."""
    return reach(LARGE) / reach(DEEP)


LARK_PAIR = (("ViT-S", "vit-s"), ("UniRepLKNet-T", "unireplknet-t-merged"))


class UniRepLKNetCard(ArchitectureCard):
    """Counts and merging; reach and accuracy of few large kernels against more small ones."""

    key = "unireplknet"
    claim = (
        "a few large kernels, trained with dilated branches and merged, see wider than many small "
        "ones and make networks that are better and faster than transformers of the same work"
    )
    rows = tuple(f"unireplknet-{size}-merged" for size in "afpnt")
    exact = (
        Exact("merged network, off the branched one", merged_lark, 1e-4),
        Exact("receptive radius, 13x13 over 3x3 deeper, untrained", reach_ratio, 1.0, ">="),
    )
    work = (Work("13x13", "3x3 deeper", 1.0),)
    timings = (Timing(zoo_pair, (*LARK_PAIR, 224), "UniRepLKNet-T", "ViT-S", 1.0),)
    trained = Trained(
        scans, small_lark, images(1, 1, IMAGE, IMAGE), SHORT_SCANS, seeds={"quick": 3, "full": 10}
    )
    learnt = (
        learns("13x13", 0.75),
        better("13x13", "3x3 deeper"),
        better("13x13", "13x13, no branches"),
    )


PLAN = Plan((1, 1, 1, 1), (1, 1), (16, 16, 32, 32), (1, 2))


class Unseen(nn.Module):
    """A context of zeros in place of the overview's."""

    def __init__(self, context: nn.Module) -> None:
        super().__init__()
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the context's shape."""
        return self.context(x) * 0


class StaticMix(nn.Module):
    """Two depthwise convolutions of ContMix's sizes, the same for every input and position."""

    def __init__(self, mix: ContMix, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.convs = nn.ModuleList(
            nn.Conv2d(half, half, side, padding=side // 2, groups=half) for side in mix.sides
        )

    def forward(self, mixed: Tensor, local: Tensor, context: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape; the context is not looked at."""
        halves = zip(self.convs, mixed.chunk(2, 1), strict=True)
        return torch.cat([conv(half) for conv, half in halves], 1)


def small_overlock(name: str) -> nn.Module:
    """One block a stage: whole, without its overview, or with static kernels."""
    model = OverLoCK(PLAN, 10, 1, kernels=(7, 7, 7, 7), ratio=2, features=64, auxiliary=False)
    if name == "no overview":
        model.set_submodule("to_context", Unseen(model.to_context))
    if name == "static kernels":
        for block in [m for m in model.modules() if isinstance(m, FocusBlock)]:
            block.set_submodule("mixer", StaticMix(block.mixer, block.parts[0]))
    return model


def merged_overlock() -> float:
    """OverLoCK off its merged form."""
    torch.manual_seed(0)
    return merged_apart(small_overlock("whole"), 64)


def constant_logits() -> float:
    """ContMix whose logits are constant, off a static convolution, away from the borders."""
    torch.manual_seed(0)
    mix = ContMix(16, 6, 2, 7, small=3).eval()
    nn.init.zeros_(mix.query.norm.weight)
    mixed, local = torch.randn(2, 16, 11, 12), torch.randn(2, 16, 11, 12)
    context = torch.randn(2, 6, 11, 12)
    worst = 0.0
    with torch.inference_mode():
        ours = mix(mixed, local, context)
        assert mix.kernel.bias is not None
        for half, logits in enumerate(mix.kernel.bias.split((9, 49))):
            side = (3, 7)[half]
            weight = logits.softmax(0).reshape(1, 1, side, side).repeat(8, 1, 1, 1)
            part, edge = slice(8 * half, 8 * half + 8), side // 2
            static = F.conv2d(mixed[:, part], weight, groups=8)
            worst = max(worst, apart(ours[:, part, edge:-edge, edge:-edge], static))
    return worst


OVERLOCK_PAIR = (("ConvNeXt-T", "convnext-tiny"), ("OverLoCK-XT", "overlock-xt-merged"))


class OverLoCKCard(ArchitectureCard):
    """Counts, merging, dynamic kernels against their static form, and the two ablations."""

    key = "overlock"
    claim = (
        "an overview first and dynamic kernels made from it are both needed, and make a ConvNet "
        "that is as good as ConvNeXt at a fraction of its work"
    )
    rows = ("overlock-xt-merged", "overlock-t-merged", "overlock-s-merged", "overlock-b-merged")
    exact = (
        Exact("merged network, off the branched one", merged_overlock, 1e-4),
        Exact("ContMix of constant logits, off a static convolution", constant_logits),
    )
    timings = (Timing(zoo_pair, (*OVERLOCK_PAIR, 224), "OverLoCK-XT", "ConvNeXt-T", 1.0),)
    trained = Trained(
        scans,
        small_overlock,
        images(1, 1, IMAGE, IMAGE),
        {**SHORT_SCANS, "quick": replace(SHORT_SCANS["quick"], epochs=3)},
        seeds={"quick": 3, "full": 10},
    )
    learnt = (
        learns("whole", 0.75),
        better("whole", "no overview"),
        better("whole", "static kernels"),
    )
