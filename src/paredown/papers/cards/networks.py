"""Claim cards of architectures: MobileNetV2 (arXiv:1801.04381) and VoVNet (arXiv:1904.09730)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from paredown import zoo
from paredown.figure import Figure, counted, predicted
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.nn import DenseBlock, InvertedResidual, OneShotAggregation, SlicedInvertedResidual
from paredown.nn.conv import ConvNormAct, classifier, he_init
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _task
from paredown.papers.timing import side_by_side
from paredown.workload import Workload
from paredown.zoo.mobilenetv2 import MobileNetV2

VARIANTS: dict[str, dict[str, Any]] = {
    "linear, thin skip": {},
    "ReLU6, thin skip": {"linear": False},
    "linear, no skip": {"skip": "none"},
    "linear, wide skip": {"skip": "wide"},
}
SMALL_ROWS = ((4, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2))


def small_mobilenet(name: str) -> nn.Module:
    """A small MobileNetV2 for the shared task, one of the ablations by name."""
    return MobileNetV2(1.0, 10, 1, rows=SMALL_ROWS, stem=16, last=96, dropout=0.0, **VARIANTS[name])


def graph_of(model: nn.Module, *shape: int) -> Graph:
    """The graph of one run of a model in eval mode on a random tensor of this shape."""
    return capture(Workload(model.eval(), (torch.zeros(shape),)))


def peak_inner_bytes(graph: Graph) -> int:
    """Most bytes of intermediates alive at once (inputs, weights and outputs left out)."""
    inner = [s for s in graph.storages.values() if s.kind == "intermediate"]
    end = len(graph.nodes)
    return max(
        sum(s.nbytes for s in inner if s.created <= i < (end if s.freed is None else s.freed))
        for i in range(end)
    )


class MobileNetV2Card(Card):
    """Counts, sliced execution, and the two ablations of figure 6."""

    key = "mobilenetv2"
    claim = (
        "3.5M parameters and 300M multiply-accumulates at width 1.0; the wide tensor can be run in "
        "slices; linear bottlenecks and thin skips are both needed"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "params_error": 0.0,
        "macs_error": 0.01,
        "slicing_error": 1e-5,
        "inner_bytes_share_of_1_over_slices": 1.0,
        "linear_minus_relu": 0.0,
        "thin_minus_none": 0.0,
    }
    slices = 4

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Exact counts and slices; then four small networks on the task, paired by seed."""
        t = self.thresholds
        with torch.device("meta"):
            whole = zoo.create("mobilenetv2")
        graph = graph_of(whole, 1, 3, 224, 224)
        difference, share = self.sliced()
        seeds = list(range(3 if scale == "quick" else 10))
        budget = _task.Budget(epochs=8 if scale == "quick" else 20)
        names = [n for n in VARIANTS if scale == "full" or n != "linear, wide skip"]
        found = _task.accuracies(small_mobilenet, dict.fromkeys(names, budget), seeds, progress)
        ours = found["linear, thin skip"]
        checks = [
            Check("params off 3,504,872", abs(graph.params - 3_504_872), "<=", t["params_error"]),
            Check("MACs off 300.8M", abs(graph.macs / 300.8e6 - 1), "<=", t["macs_error"]),
            Check("sliced block off the whole", difference, "<=", t["slicing_error"]),
            Check(
                f"inner bytes in {self.slices} slices, times {self.slices}",
                share,
                "<=",
                t["inner_bytes_share_of_1_over_slices"],
                unit="x",
            ),
            _task.not_worse(
                "accuracy, linear minus ReLU6",
                ours,
                found["ReLU6, thin skip"],
                t["linear_minus_relu"],
            ),
            _task.not_worse(
                "accuracy, thin skip minus none",
                ours,
                found["linear, no skip"],
                t["thin_minus_none"],
            ),
        ]
        figures: dict[str, Figure] = {
            "params": counted(graph.params, ""),
            "macs": counted(graph.macs, "MAC"),
            **{f"accuracy, {name}": mean_figure(a, "") for name, a in found.items()},
        }
        rows = [
            {"network": n, "seed": s, "accuracy": a}
            for n, v in found.items()
            for s, a in zip(seeds, v, strict=True)
        ]
        return Experiment(figures, checks, seeds, {"accuracy": rows})

    def sliced(self) -> tuple[float, float]:
        """Largest difference of the sliced block; its inner bytes times slices over the whole's.

        Inner bytes are what is alive beside the accumulated thin output, from the graph's storages.
        """
        torch.manual_seed(0)
        block = InvertedResidual(24, 24).eval()
        x = torch.randn(1, 24, 56, 56)
        with torch.inference_mode():
            difference = (SlicedInvertedResidual(block, self.slices)(x) - block(x)).abs().max()
        thin = x.numel() * 4
        one = peak_inner_bytes(graph_of(SlicedInvertedResidual(block, 1), *x.shape))
        many = peak_inner_bytes(graph_of(SlicedInvertedResidual(block, self.slices), *x.shape))
        return float(difference), (many - thin) * self.slices / one


class VoVNetCard(Card):
    """One-shot aggregation against a dense block of equal work."""

    key = "vovnet"
    claim = (
        "aggregating once instead of densely moves less memory for the same work, and runs faster "
        "on less energy at equal accuracy"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "traffic_ratio": 1.0,
        "speedup": 1.3,
        "accuracy_margin": -0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Blocks at 56 x 56, batch 1, eager fp32, interleaved; then small networks on the task.

        All convolutions have stride 1 and no bias, so equal work is equal convolution weights too.
        """
        t = self.thresholds
        osa, growth = one_shot(), dense_growth(one_shot())
        dense = DenseBlock(128, growth, DENSE_LAYERS)
        moved = memory_access(dense) / memory_access(osa)
        progress("timing blocks")
        seconds = 8.0 if scale == "quick" else 30.0
        rows = side_by_side(blocks, growth, seconds=seconds, threads=2, limit_s=300)
        speed: Figure = rows["dense"]["ratio"]
        seeds = list(range(3 if scale == "quick" else 10))
        budget = _task.Budget(epochs=10 if scale == "quick" else 20)
        kinds: dict[str, _task.Budget] = {"OSA": budget, "dense": budget}
        found = _task.accuracies(small_aggregating, kinds, seeds, progress)
        checks = [
            Check("elements moved, dense over OSA", moved, ">=", t["traffic_ratio"], unit="x"),
            Check(
                "time, dense over OSA", speed.known(), ">=", t["speedup"], half_width(speed), "x"
            ),
            _task.not_worse(
                "accuracy, OSA minus dense", found["OSA"], found["dense"], t["accuracy_margin"]
            ),
        ]
        figures: dict[str, Figure] = {
            "work, dense over OSA": counted(conv_weights(dense) / conv_weights(osa), "x"),
            "elements moved, dense over OSA": counted(moved, "x"),
            "time, dense over OSA": speed,
            "latency, OSA": rows["OSA"]["latency"],
            "latency, dense": rows["dense"]["latency"],
            "a/a ratio": rows["a/a"]["ratio"],
            "energy, dense over OSA": predicted(
                modelled_energy(dense) / modelled_energy(osa), "x", reason=ENERGY_SOURCE
            ),
            **{f"accuracy, {n}": mean_figure(a, "") for n, a in found.items()},
        }
        return Experiment(figures, checks, seeds)


DENSE_LAYERS = 6

# fp32 multiply and add, and a 32-bit word from DRAM, at 45 nm (Horowitz, ISSCC 2014).
PJ_PER_MAC, PJ_PER_WORD = 4.6, 640.0
ENERGY_SOURCE = "4.6 pJ per fp32 MAC, 640 pJ per 32-bit DRAM word (Horowitz 2014), no caches"


def one_shot() -> OneShotAggregation:
    """The first OSA module of VoVNet-27-slim."""
    return OneShotAggregation(128, 64, 128)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """All convolutions of a model."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def conv_weights(model: nn.Module) -> int:
    """Weights of all convolutions: at stride 1 their MACs per pixel."""
    return sum(c.weight.numel() for c in convolutions(model))


def memory_access(model: nn.Module, side: int = 56) -> int:
    """The paper's memory access cost: inputs and outputs of every convolution, plus weights."""
    pixels = side * side
    return conv_weights(model) + sum(
        pixels * (c.in_channels + c.out_channels) for c in convolutions(model)
    )


def modelled_energy(model: nn.Module, side: int = 56) -> float:
    """Joules of a block at batch 1 if every input, output and weight came from DRAM."""
    work = conv_weights(model) * side * side
    return work * PJ_PER_MAC * 1e-12 + memory_access(model, side) * PJ_PER_WORD * 1e-12


def dense_growth(osa: nn.Module) -> int:
    """The growth rate at which a DenseNet-BC block of six layers has most nearly the same work."""
    wanted = conv_weights(osa)
    with torch.device("meta"):
        work = {g: conv_weights(DenseBlock(128, g, DENSE_LAYERS)) for g in range(8, 96)}
    return min(work, key=lambda g: abs(work[g] - wanted))


def blocks(growth: int) -> list[tuple[str, Callable[[], Any]]]:
    """Both blocks ready to run at 56 x 56, batch 1 (built in the timing child)."""
    x = torch.randn(1, 128, 56, 56)
    osa, dense = one_shot().eval(), DenseBlock(128, growth, DENSE_LAYERS).eval()
    return [("OSA", lambda: osa(x)), ("dense", lambda: dense(x))]


def small_aggregating(kind: str) -> nn.Module:
    """A small classifier with two OSA or two dense blocks of nearly equal work."""
    body: list[nn.Module] = [ConvNormAct(1, 16, 3, stride=2), ConvNormAct(16, 24, 3, stride=2)]
    channels = 24
    for outputs in (32, 48):
        if kind == "OSA":
            body.append(OneShotAggregation(channels, 16, outputs, layers=4))
        else:
            dense = DenseBlock(channels, 12, 4, bottleneck=2)
            body += [dense, ConvNormAct(dense.outputs, outputs)]
        body.append(nn.MaxPool2d(2))
        channels = outputs
    model = nn.Sequential(*body, classifier(channels, 10))
    he_init(model)
    return model
