"""Claim cards of spatial layers: TVConv (arXiv:2203.10489), parameter-free ones (2202.02777)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown import zoo
from paredown.figure import Figure, counted
from paredown.nn import Bottleneck, ConvNormAct, InvertedResidual, PooledBottleneck, vary
from paredown.nn.conv import classifier, he_init
from paredown.nn.reparam import reparameterise
from paredown.nn.tvconv import FixedVariantConv
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _scans, _task
from paredown.papers.cards.networks import graph_of
from paredown.papers.timing import side_by_side

CANVAS = 20
LAYOUTS = ("aligned", "moved")


def thin(name: str) -> nn.Module:
    """A thin MobileNetV2-like network; names beginning "TVConv" have translation-variant kernels.

    Multiply-accumulates are the same: the kernels are constants at inference.
    """
    model = nn.Sequential(
        ConvNormAct(1, 8, 3, stride=2),
        InvertedResidual(8, 8, expand=3),
        InvertedResidual(8, 16, expand=3, stride=2),
        InvertedResidual(16, 16, expand=3),
        classifier(16, 10),
    )
    he_init(model)
    if name.startswith("TVConv"):
        return vary(model, torch.zeros(1, 1, CANVAS, CANVAS))
    return model


def thin_runs() -> list[tuple[str, Callable[[], Any]]]:
    """The depthwise network and the folded variant one, at batch 1 (in the timing child)."""
    x = torch.randn(1, 1, CANVAS, CANVAS)
    models = {"depthwise": thin("depthwise").eval(), "TVConv": reparameterise(thin("TVConv"))}
    return [(name, lambda m=m: m(x)) for name, m in models.items()]


class TVConvCard(Card):
    """Where the layout is fixed and where it is not, at equal work."""

    key = "tvconv"
    claim = (
        "a kernel of its own for every pixel beats depthwise convolution at equal work where the "
        "inputs have a fixed layout"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "aligned_gain": 0.0,
        "aligned_minus_moved_gain": 0.0,
        "macs_ratio_error": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy digits centred, then at random places on the same canvas; paired by seed."""
        t = self.thresholds
        quick = scale == "quick"
        seeds = list(range(3 if quick else 10))
        plan = _scans.Plan(10 if quick else 40, canvas=CANVAS)
        plans = {
            f"{kind}, {layout}": _scans.Plan(plan.epochs, canvas=CANVAS, moved=layout == "moved")
            for kind in ("depthwise", "TVConv")
            for layout in LAYOUTS
        }
        progress("timing networks")
        rows = side_by_side(thin_runs, seconds=4.0 if quick else 20.0, threads=2, limit_s=200)
        found = _scans.accuracies(thin, plans, seeds, progress)
        gain = {
            layout: np.subtract(found[f"TVConv, {layout}"], found[f"depthwise, {layout}"])
            for layout in LAYOUTS
        }
        plain, fixed = thin("depthwise").eval(), reparameterise(thin("TVConv"))
        work = conv_macs(fixed) / graph_of(plain, 1, 1, CANVAS, CANVAS).macs
        checks = [
            Check("MACs, TVConv over depthwise, off 1", abs(work - 1), "<=", t["macs_ratio_error"]),
            _task.mean_check(
                "accuracy, aligned, TVConv minus depthwise",
                gain["aligned"].tolist(),
                ">=",
                t["aligned_gain"],
            ),
            _task.mean_check(
                "gain on aligned minus gain on moved",
                (gain["aligned"] - gain["moved"]).tolist(),
                ">=",
                t["aligned_minus_moved_gain"],
            ),
        ]
        figures: dict[str, Figure] = {
            **{f"accuracy, {n}": mean_figure(a, "") for n, a in found.items()},
            "time, TVConv over depthwise": rows["TVConv"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            "bytes of weights, depthwise": counted(weight_bytes(plain), "B"),
            "bytes of weights, TVConv": counted(weight_bytes(fixed), "B"),
        }
        return Experiment(figures, checks, seeds)


def conv_macs(model: nn.Module) -> int:
    """MACs of a folded variant network: its products are elementwise, so counted by the layer."""
    total = 0

    def note(m: nn.Module, _: Any, y: torch.Tensor) -> None:
        nonlocal total
        if isinstance(m, FixedVariantConv):
            total += m.weight.numel()
        elif isinstance(m, nn.Conv2d):
            total += m.weight.numel() * y.shape[-1] * y.shape[-2]
        elif isinstance(m, nn.Linear):
            total += m.weight.numel()

    hooks = [m.register_forward_hook(note) for m in model.modules()]
    with torch.no_grad():
        model(torch.zeros(1, 1, CANVAS, CANVAS))
    for hook in hooks:
        hook.remove()
    return total


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "conv": Bottleneck,
    "depthwise": lambda i, n, o, stride: Bottleneck(i, n, o, stride=stride, groups=n),
    "max": partial(PooledBottleneck, spatial="max"),
    "hybrid": partial(PooledBottleneck, spatial="hybrid"),
}


def bottlenecks(kind: str) -> nn.Module:
    """A small bottleneck network, its spatial layers of one kind."""
    model = nn.Sequential(ConvNormAct(1, 16, 3, stride=2))
    channels = 16
    for outputs, stride in ((32, 1), (32, 1), (64, 2), (64, 1)):
        model.append(BLOCKS[kind](channels, outputs // 2, outputs, stride=stride))
        channels = outputs
    model.append(classifier(channels, 10))
    he_init(model)
    return model


NETWORKS = {"conv": "resnet50", "max": "resnet50-max", "hybrid": "resnet50-hybrid"}
PUBLISHED = {"conv": 25.6e6, "max": 14.2e6, "hybrid": 17.3e6}


def resnets(size: int) -> list[tuple[str, Callable[[], Any]]]:
    """ResNet-50 and its two forms at batch 1 (in the timing child)."""
    x = torch.randn(1, 3, size, size)
    models = {kind: zoo.create(name).eval() for kind, name in NETWORKS.items()}
    return [(kind, lambda m=m: m(x)) for kind, m in models.items()]


class PfLayerCard(Card):
    """Parameters of the three ResNet-50, their latency here, and small ones on moved digits."""

    key = "pflayer"
    claim = (
        "a ResNet-50 whose 3x3 convolutions at stride 1 are max-pools is as accurate, smaller "
        "(17.3M parameters for 25.6M) and faster"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "params_error": 0.01,
        "hybrid_time_ratio": 1.0,
        "hybrid_minus_conv": -0.005,
        "max_minus_depthwise": -0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Eager fp32 at batch 1 on 2 threads; accuracy of four kinds of bottleneck, by seed."""
        t = self.thresholds
        quick = scale == "quick"
        with torch.device("meta"):
            made = {kind: zoo.create(name) for kind, name in NETWORKS.items()}
        params = {k: sum(p.numel() for p in m.parameters()) for k, m in made.items()}
        off = max(abs(params[k] / PUBLISHED[k] - 1) for k in PUBLISHED)
        progress("timing networks")
        size = 128 if quick else 224
        rows = side_by_side(resnets, size, seconds=12.0, threads=2, limit_s=400)
        speed: Figure = rows["hybrid"]["ratio"]
        seeds = list(range(3 if quick else 10))
        plan = _scans.Plan(8 if quick else 40, canvas=CANVAS, moved=True)
        found = _scans.accuracies(bottlenecks, dict.fromkeys(BLOCKS, plan), seeds, progress)
        checks = [
            Check("parameters off the published", off, "<=", t["params_error"]),
            Check(
                "time, hybrid over conv",
                speed.known(),
                "<=",
                t["hybrid_time_ratio"],
                half_width(speed),
                "x",
            ),
            _task.not_worse(
                "accuracy, hybrid minus conv",
                found["hybrid"],
                found["conv"],
                t["hybrid_minus_conv"],
            ),
            _task.not_worse(
                "accuracy, max minus depthwise",
                found["max"],
                found["depthwise"],
                t["max_minus_depthwise"],
            ),
        ]
        figures: dict[str, Figure] = {
            **{f"parameters, {NETWORKS[k]}": counted(n, "") for k, n in params.items()},
            "time, hybrid over conv": speed,
            "time, max over conv": rows["max"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            **{f"accuracy, {n}": mean_figure(a, "") for n, a in found.items()},
        }
        return Experiment(figures, checks, seeds)
