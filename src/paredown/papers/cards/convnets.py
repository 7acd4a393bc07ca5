"""Claim cards of convolutional networks: GhostNetV2 (arXiv:2211.12905), InceptionNeXt (2303.16900)

and SimpleNet (1608.06037).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from paredown import zoo
from paredown.nn.conv import ConvNormAct, classifier, he_init
from paredown.papers.cards._nets import (
    IMAGE,
    SCANS,
    SHORT_SCANS,
    apart,
    images,
    opened,
    scans,
)
from paredown.papers.cards._parts import Exact, Subject, Timing, Trained, Work, better, learns
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo.convnext import ConvNeXt
from paredown.zoo.ghostnetv2 import DecoupledAttention, GhostNetV2
from paredown.zoo.inceptionnext import InceptionDepthwise, InceptionNeXt
from paredown.zoo.resnet import ResNet
from paredown.zoo.simplenet import SimpleNet

GHOST_ROWS = ((3, 24, 16, 0.0, 1), (3, 48, 24, 0.25, 2), (3, 72, 24, 0.0, 1), (5, 96, 40, 0.25, 2))


def rank_one() -> float:
    """A row of taps and then a column, the norm between left out, off the rank-1 kernel."""
    torch.manual_seed(0)
    gate, x = DecoupledAttention(6, 8), torch.randn(2, 8, 9, 11)
    with torch.inference_mode():
        kernel = gate.column.conv.weight @ gate.row.conv.weight
        whole = F.conv2d(x, kernel, padding=2, groups=8)
        return apart(gate.column.conv(gate.row.conv(x)), whole)


def small_ghost(name: str) -> nn.Module:
    """GhostNet with gates (V2), or without and wider, so that it has no less work (V1)."""
    return GhostNetV2(
        1.0 if name == "V2" else 1.16,
        10,
        1,
        rows=GHOST_ROWS,
        plain_rows=1,
        features=64,
        dropout=0.0,
        attention=name == "V2",
    )


def ghosts(size: int) -> list[Subject]:
    """GhostNet V1 and V2 at full width."""
    x = torch.randn(1, 3, size, size)
    return [("V1", GhostNetV2(attention=False), (x,)), ("V2", GhostNetV2(), (x,))]


class GhostNetV2Card(ArchitectureCard):
    """Counts, the gate's rank, what the gate costs in time, and what it gives at equal work."""

    key = "ghostnetv2"
    claim = (
        "gates of decoupled long-range attention give a ghost network more accuracy for the same "
        "multiply-accumulates (75.3 % for 74.5 % of ImageNet at 167M) and cost little time"
    )
    rows = ("ghostnetv2-1.0", "ghostnetv2-1.3", "ghostnetv2-1.6")
    exact = (Exact("row then column, off the rank-1 kernel", rank_one),)
    work = (Work("V2", "V1", 1.02),)
    timings = (Timing(ghosts, (224,), "V2", "V1", 1.25, per_mac=True),)
    trained = Trained(
        scans, small_ghost, images(1, 1, IMAGE, IMAGE), SCANS, seeds={"quick": 4, "full": 10}
    )
    learnt = (learns("V2", 0.75), better("V2", "V1"))


def dense_mixer() -> float:
    """The four branches off one depthwise convolution with zeros in its kernels."""
    torch.manual_seed(0)
    mixer, x = InceptionDepthwise(16), torch.randn(2, 16, 17, 13)
    with torch.inference_mode():
        return apart(mixer(x), mixer.dense()(x))


def small_next(name: str) -> nn.Module:
    """Twins of three stages, their layer scales open."""
    depths, widths = (1, 1, 2), (16, 32, 64)
    if name == "ConvNeXt":
        return ConvNeXt(depths, widths, 10, 1, patch=2, scale=1.0)
    return opened(InceptionNeXt(depths, widths, 10, 1, ratios=(4, 4, 3), patch=2))


NEXT_PAIR = (("ConvNeXt-T", "convnext-tiny"), ("InceptionNeXt-T", "inceptionnext-tiny"))


class InceptionNeXtCard(ArchitectureCard):
    """Counts, the mixer as one convolution, time to train and to run, accuracy of small twins."""

    key = "inceptionnext"
    claim = (
        "splitting a large depthwise kernel into a square, two bands and an identity trains 1.6x "
        "as fast as ConvNeXt-T at no loss of accuracy (an A100)"
    )
    rows = ("inceptionnext-atto", "inceptionnext-tiny", "inceptionnext-small", "inceptionnext-base")
    exact = (Exact("mixer, off one dense depthwise convolution", dense_mixer),)
    work = (Work("InceptionNeXt", "ConvNeXt", 1.0),)
    timings = (
        Timing(zoo_pair, (*NEXT_PAIR, 224), "InceptionNeXt-T", "ConvNeXt-T", 1 / 1.1),
        Timing(
            zoo_pair, (*NEXT_PAIR, 128, 4), "InceptionNeXt-T", "ConvNeXt-T", 1 / 1.3, train=True
        ),
    )
    trained = Trained(
        scans, small_next, images(1, 1, IMAGE, IMAGE), SHORT_SCANS, seeds={"quick": 3, "full": 10}
    )
    learnt = (learns("InceptionNeXt", 0.75), better("InceptionNeXt", "ConvNeXt", -0.005))


def small_simple(name: str) -> nn.Module:
    """A plain network by the design rules, and a VGG and a ResNet of twice its parameters."""
    if name == "ResNet":
        return ResNet((1, 1, 1), 10, 1, width=16)
    if name == "SimpleNet":
        groups = ((16, 16, 16), (16, 24), (24, -48, -24), (24,))
        return SimpleNet(groups, 10, 1, strides=(2,))
    if name == "SimpleNet, 1x1 early":
        return SimpleNet(((16, -48, -24, 24), (16, 16), (16, 24), (24,)), 10, 1, strides=(2,))
    body: list[nn.Module] = []
    channels = 1
    for i, outputs in enumerate((16, 32, 64)):
        body += [ConvNormAct(channels, outputs, 3, stride=1 if i else 2)]
        body += [ConvNormAct(outputs, outputs, 3), nn.MaxPool2d(2)]
        channels = outputs
    model = nn.Sequential(*body, classifier(64, 10))
    he_init(model)
    return model


def simple_pair() -> list[Subject]:
    """The two CIFAR networks: SimpleNet of 5.5M parameters and a ResNet-18 at the same size."""
    x = (torch.randn(1, 3, 32, 32),)
    return [
        ("ResNet-18", zoo.create("resnet18", num_classes=10), (torch.randn(1, 3, 128, 128),)),
        ("SimpleNet", zoo.create("simplenet-cifar-5m"), x),
    ]


class SimpleNetCard(ArchitectureCard):
    """Counts; a small one against a VGG and a ResNet of twice its parameters; time per MAC."""

    key = "simplenet"
    claim = (
        "a plain network of 13 layers by simple design rules matches VGG and ResNet at 2 to 25 "
        "times fewer parameters and operations"
    )
    rows = (
        "simplenet-cifar-5m",
        "simplenet-cifar-310k",
        "simplenet-small-0.5-m1",
        "simplenet-5m-m1",
        "simplenet-9m-m1",
    )
    work = (
        Work("SimpleNet", "VGG", 0.5, of="params"),
        Work("SimpleNet", "ResNet", 0.5, of="params"),
        Work("SimpleNet", "VGG", 1.0),
    )
    timings = (Timing(simple_pair, (), "SimpleNet", "ResNet-18", 1.0, per_mac=True),)
    trained = Trained(
        scans,
        small_simple,
        images(1, 1, IMAGE, IMAGE),
        SCANS,
        seeds={"quick": 4, "full": 10},
    )
    learnt = (
        learns("SimpleNet", 0.75),
        better("SimpleNet", "VGG", -0.005),
        better("SimpleNet", "ResNet", -0.005),
        better("SimpleNet", "SimpleNet, 1x1 early"),
    )
