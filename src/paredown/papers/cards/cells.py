"""Claim cards of Inception-v4 (arXiv:1602.07261) and NASNet (arXiv:1707.07012)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown import zoo
from paredown.nn.conv import ConvNormAct, classifier, he_init
from paredown.papers.cards._nets import IMAGE, SCANS, SMALL_SCANS, apart, images, scans
from paredown.papers.cards._parts import (
    FLOORS,
    Build,
    Exact,
    Subject,
    Timing,
    Trained,
    Work,
    better,
    learns,
)
from paredown.papers.cards._scans import Plan, Scans, judge
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.workloads.fit import Phase, fit
from paredown.zoo.inception_v4 import (
    Concat,
    ScaledResidual,
    block_a,
    chain,
    pooled,
    residual_a,
)
from paredown.zoo.mobilenetv2 import MobileNetV2
from paredown.zoo.nasnet import NASNet


def wrong_sides() -> float:
    """How many of the three maps are not 35, 17 and 8 pixels wide for an image of 299."""
    with torch.device("meta"):
        maps = zoo.create("inception-v4", features_only=True)(torch.empty(2, 3, 299, 299))
    return sum(m.shape[-1] != side for m, side in zip(maps, (35, 17, 8), strict=True))


def plain_block() -> nn.Module:
    """An Inception block of 48 channels in and out."""
    return Concat(
        chain(48, (12, 1, 1)),
        chain(48, (8, 1, 1), (12, 3, 1)),
        chain(48, (8, 1, 1), (12, 3, 1), (12, 3, 1)),
        pooled(48, 12),
    )


def residual_block(scale: float = 0.2) -> nn.Module:
    """A residual one with as many parameters, its sum scaled."""
    body = Concat(
        chain(48, (8, 1, 1)),
        chain(48, (8, 1, 1), (8, 3, 1)),
        chain(48, (8, 1, 1), (10, 3, 1), (12, 3, 1)),
    )
    return ScaledResidual(48, body, 28, scale)


def small_inception(name: str) -> nn.Module:
    """Eight blocks at two resolutions."""
    block = residual_block if name == "residual" else plain_block
    model = nn.Sequential(
        ConvNormAct(1, 24, 3, stride=2),
        ConvNormAct(24, 48, 3, stride=2),
        *(block() for _ in range(4)),
        nn.MaxPool2d(2),
        *(block() for _ in range(4)),
        classifier(48, 10),
    )
    he_init(model)
    return model


REACHED = 0.9


def pace(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Held-out accuracy, and the steps until a running training accuracy first is 0.9.

    The running mean has a horizon of 20 batches; a network that never gets there has all steps.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, hits = build(name), list[float]()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        hits.append(float((out.argmax(1) == y).float().mean()))
        return F.cross_entropy(out, y)

    fit(model, [Phase(Scans(plan), plan.epochs)], rate=plan.rate, seed=seed, loss=loss)
    running, steps = 0.0, len(hits)
    for i, hit in enumerate(hits):
        running += (hit - running) / min(i + 1, 20)
        if i >= 20 and running >= REACHED:
            steps = i + 1
            break
    return {"accuracy": float(judge(plan)(model).mean()), "steps": float(steps)}


def inception_blocks() -> list[Subject]:
    """Four blocks each of Inception-v4's and Inception-ResNet's 35 x 35 part."""
    return [
        ("plain", nn.Sequential(*(block_a() for _ in range(4))), (torch.randn(1, 384, 35, 35),)),
        (
            "residual",
            nn.Sequential(*(residual_a(384, (48, 64), 0.17) for _ in range(4))),
            (torch.randn(1, 384, 35, 35),),
        ),
    ]


class InceptionV4Card(ArchitectureCard):
    """Counts and map sizes; how fast small twins learn with and without residuals."""

    key = "inception-v4"
    claim = (
        "residual connections make Inception networks train much faster at equal cost, to about "
        "the same accuracy"
    )
    rows = ("inception-v4", "inception-resnet-v2")
    errors = (0.01, 0.01)
    exact = (Exact("maps that are not 35, 17 and 8 wide", wrong_sides, 0.0),)
    work = (Work("residual", "plain", 1.05, of="params"), Work("residual", "plain", 1.05))
    timings = (Timing(inception_blocks, (), "residual", "plain", None, per_mac=True),)
    trained = Trained(
        pace,
        small_inception,
        images(1, 1, IMAGE, IMAGE),
        SCANS,
        floors={**FLOORS, "steps": 1.0},
    )
    learnt = (
        learns("residual", 0.75),
        better("plain", "residual", 0.0, "steps"),
        better("residual", "plain", -0.01),
    )


def dropped_path() -> float:
    """Drop path at the start of its schedule, off the network without."""
    torch.manual_seed(0)
    one = NASNet(1, 96, 5, 1, stem=8, imagenet=False, drop=0.3)
    one.schedule(0.0)
    torch.manual_seed(0)
    other = NASNet(1, 96, 5, 1, stem=8, imagenet=False)
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        found, wanted = one(x), other(x)
    assert isinstance(found, Tensor)
    assert isinstance(wanted, Tensor)
    return apart(found, wanted)


def small_nasnet(name: str) -> nn.Module:
    """One normal cell at each of three resolutions, and inverted residuals of as much work."""
    if name == "NASNet-A":
        return NASNet(1, 96, 10, 1, stem=12, imagenet=False)
    rows = ((4, 24, 2, 1), (4, 32, 2, 2), (4, 48, 1, 2))
    return MobileNetV2(1.0, 10, 1, rows=rows, stem=24, last=96, dropout=0.0)


MOBILE_PAIR = (("MobileNetV2-1.4", "mobilenetv2-1.4"), ("NASNet-A mobile", "nasnet-a-mobile"))


class NASNetCard(ArchitectureCard):
    """Counts, drop path by schedule, and the searched cells against hand-made blocks.

    What is not tried here: the search itself, and whether its ranking carries over to other data.
    """

    key = "nasnet"
    claim = (
        "cells that a search found on small images make networks for large ones that are better "
        "than hand-made ones for the same work (the mobile one by 3.1 points)"
    )
    rows = ("nasnet-a-mobile", "nasnet-a-large")
    errors = (0.01, 0.01)
    exact = (Exact("drop path of rate 0, off none", dropped_path, 0.0),)
    work = (Work("NASNet-A", "inverted residuals", 1.05),)
    timings = (Timing(zoo_pair, (*MOBILE_PAIR, 224), "NASNet-A mobile", "MobileNetV2-1.4", 1.0),)
    trained = Trained(
        scans,
        small_nasnet,
        images(1, 1, 16, 16),
        SMALL_SCANS,
        seeds={"quick": 3, "full": 10},
    )
    learnt = (learns("NASNet-A", 0.75), better("NASNet-A", "inverted residuals"))
