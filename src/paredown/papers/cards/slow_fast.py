"""Claim card of Terminator, the HyperZ.Z.W network (arXiv:2401.17948)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown import zoo
from paredown.nn.conv import BasicBlock, ConvNormAct, classifier, he_init
from paredown.nn.hyper_kernel import Magnet
from paredown.papers.cards._nets import apart, images
from paredown.papers.cards._parts import (
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
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.workloads.fit import Phase, fit
from paredown.zoo.terminator import Terminator, standardised, zzw


def looped() -> float:
    """HyperZ.Z.W, off a loop over all elements."""
    torch.manual_seed(0)
    kernel, x = torch.randn(3, 2, 2), torch.randn(4, 3, 2, 2)
    want = torch.empty_like(x)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        b, c, i, j = at
        want[b, c, i, j] = float(kernel[c, i, j] * x[b, c, i, j]) * x[b, c, i, j]
    return apart(zzw(kernel, x), want)


def mean_left() -> float:
    """The largest mean of a standardised map."""
    torch.manual_seed(0)
    return float(standardised(5 + 3 * torch.randn(4, 24, 6, 6), (2, 3)).mean((2, 3)).abs().max())


def kernels_apart() -> float:
    """The global kernel made twice: it knows the coordinates alone."""
    torch.manual_seed(0)
    slow = Magnet(2, 5, 8, 6, 2)
    return apart(slow(), slow())


def small_terminator(name: str) -> nn.Module:
    """A narrow Terminator without residuals, and a residual network of more parameters."""
    if name == "Terminator":
        return Terminator(10, 1, image_size=SIDE, factors=(12, 1, 1, 1, 1), dropout=(0.0,) * 5)
    model = nn.Sequential(
        ConvNormAct(1, 32, 3),
        BasicBlock(32, 32),
        BasicBlock(32, 64, stride=2),
        BasicBlock(64, 136, stride=2),
        classifier(136, 10),
    )
    he_init(model)
    return model


SIDE = 8
TINY_SCANS = {
    "quick": Plan(6, batch=48, rate=4e-3, size=SIDE, canvas=SIDE),
    "full": Plan(30, size=SIDE, canvas=SIDE),
}


def slow_and_fast(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Held-out accuracy; Terminator's slow networks have their local error added to the loss."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(name)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(out, y)
        return value + model.slow_loss() if isinstance(model, Terminator) else value

    fit(model, [Phase(Scans(plan), plan.epochs)], rate=plan.rate, seed=seed, loss=loss)
    return {"accuracy": float(judge(plan)(model).mean())}


def terminators() -> list[Subject]:
    """A ResNet-18 and the CIFAR network at 32 x 32, batch 1."""
    x = torch.randn(1, 3, 32, 32)
    return [
        ("ResNet-18", zoo.create("resnet18", num_classes=10), (x,)),
        ("Terminator", zoo.create("terminator"), (x,)),
    ]


class TerminatorCard(ArchitectureCard):
    """The operator and its statistics; a small one against a residual network.

    Images only: the paper's sequences of pixels are not tried.
    """

    key = "hyperzzw-terminator"
    claim = (
        "kernels made from coordinates, multiplied twice with the activations, need no residuals "
        "and are better than residual networks with fewer parameters and in fewer epochs"
    )
    exact = (
        Exact("HyperZ.Z.W, off a loop", looped),
        Exact("mean of a standardised map", mean_left),
        Exact("global kernel made twice, off itself", kernels_apart, 0.0),
    )
    work = (Work("Terminator", "ResNet", 1.0, of="params"),)
    timings = (Timing(terminators, (), "Terminator", "ResNet-18", None, per_mac=True),)
    trained = Trained(
        slow_and_fast,
        small_terminator,
        images(1, 1, SIDE, SIDE),
        TINY_SCANS,
        seeds={"quick": 3, "full": 10},
    )
    learnt = (learns("Terminator", 0.6), better("Terminator", "ResNet"))
