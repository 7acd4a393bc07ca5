"""Claim card of pseudo-3-D residual networks (arXiv:1711.10305)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown.nn.conv3d import ConvNormAct3d
from paredown.nn.norm import replace_norms
from paredown.papers.cards import _clips
from paredown.papers.cards._clips import CANVAS, CLASSES, FRAMES, Plan
from paredown.papers.cards._nets import apart, images
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.papers.cards.networks import graph_of
from paredown.zoo.p3d_resnet import P3DResNet, PseudoConv3d
from paredown.zoo.resnet import ResNet


class FrameAverage(nn.Module):
    """A 2-D residual network on every frame, its logits averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet((1, 1, 1), CLASSES, 1, width=8, bottleneck=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, frames, h, w)`` to logits."""
        frames = x.transpose(1, 2).flatten(0, 1)
        return self.net(frames).unflatten(0, (x.shape[0], -1)).mean(1)


def small_p3d(name: str) -> nn.Module:
    """Three stages of one bottleneck: pseudo-3-D in turn (mixed), serial (A), or whole 3-D."""
    if name == "2-D":
        return FrameAverage()
    wirings = ("A",) if name == "P3D-A" else ("A", "B", "C")
    model = P3DResNet((1, 1, 1, 1), CLASSES, 1, width=8, wirings=wirings, dropout=0.0)
    if name == "3-D":
        replace_norms(model, PseudoConv3d, lambda m: whole(m.spatial.conv.in_channels))
    return model


def whole(channels: int) -> nn.Module:
    """The 3x3x3 convolution that a pseudo-3-D unit stands for."""
    return ConvNormAct3d(channels, channels, 3)


def frame_by_frame() -> float:
    """A serial unit whose temporal tap is (0, 1, 0), off its spatial part on every frame."""
    torch.manual_seed(0)
    unit = PseudoConv3d(6, "A").eval()
    x = torch.randn(2, 6, 5, 9, 7)
    with torch.no_grad():
        weight = unit.temporal.conv.weight.zero_()
        weight[:, :, 1, 0, 0] = torch.eye(6)
        assert unit.temporal.norm.running_var is not None
        unit.temporal.norm.running_var.fill_(1 - unit.temporal.norm.eps)
        flat = unit.spatial(x.transpose(1, 2).reshape(10, 6, 1, 9, 7))
        return apart(unit(x), flat.reshape(2, 5, 6, 9, 7).transpose(1, 2))


def kernel_share() -> float:
    """MACs of a unit over those of the 3x3x3 convolution, off 12 / 27."""
    shape = (1, 8, 4, 6, 6)
    unit, solid = graph_of(PseudoConv3d(8, "A"), *shape), graph_of(whole(8), *shape)
    return abs(unit.macs / solid.macs - 12 / 27)


def units() -> list[Subject]:
    """A 3x3x3 convolution and a serial unit on 8 frames of 28 x 28 with 64 channels."""
    x = torch.randn(1, 64, 8, 28, 28)
    return [("3-D", whole(64), (x,)), ("P3D-A", PseudoConv3d(64, "A"), (x,))]


class P3DCard(ArchitectureCard):
    """Counts and units; pseudo-3-D against frames alone and against whole 3-D kernels."""

    key = "p3d-resnet"
    claim = (
        "space and time apart, wired in three ways in turn, are better on video than a 3-D network "
        "(by 5.3 points) and than frames alone (by 1.8), for 12/27 of the kernels' work"
    )
    rows = ("p3d63", "p3d131", "p3d199")
    exact = (
        Exact("temporal identity, off the frames one by one", frame_by_frame),
        Exact("work of a unit, off 12/27", kernel_share, 0.0),
    )
    work = (Work("P3D", "3-D", 1.0),)
    timings = (Timing(units, (), "P3D-A", "3-D", 1.0),)
    trained = Trained(
        _clips.accuracy,
        small_p3d,
        images(1, 1, FRAMES, CANVAS, CANVAS),
        {"quick": Plan(120), "full": Plan(600)},
        seeds={"quick": 3, "full": 10},
        floors={"accuracy": 1 / _clips.JUDGED},
    )
    learnt = (
        learns("P3D", 0.75),
        better("P3D", "2-D", 0.1),
        better("P3D", "3-D", -0.01),
    )
