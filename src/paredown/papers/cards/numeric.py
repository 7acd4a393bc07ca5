"""Claim card of the quantization whitepaper (Krishnamoorthi 2018, arXiv:1806.08342)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.nn import InvertedResidual
from paredown.nn.conv import ConvNormAct, relu
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width
from paredown.papers.cards import _qat, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import side_by_side
from paredown.runtime import backend
from paredown.technique import Technique
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.workload import Workload
from paredown.workloads import clutter
from paredown.zoo.mobilenetv2 import MobileNetV2

BLOWN = 128.0
"""By how much one channel of every depthwise convolution is made larger than the rest."""

WAYS = ("float", "per-channel", "per-layer", "per-channel, 4-bit")
TUNED = ("float, tuned", "QAT", "QAT, 4-bit")


def network() -> nn.Module:
    """A small MobileNetV2 with ReLU: its channels can be rescaled without changing the function."""
    rows = ((4, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2))
    return MobileNetV2(1.0, 10, 1, rows=rows, stem=16, last=96, dropout=0.0, act=relu)


@torch.no_grad()
def blow_up(model: nn.Module, factor: float = BLOWN) -> None:
    """Make one channel of every depthwise convolution ``factor`` times larger, in place.

    The expansion's norm is divided by as much in that channel; ReLU commutes with positive factors,
    so in eval mode the function stays the same. Per-layer weights then have one scale for channels
    of very different range: the paper's failure of per-layer quantization (section 3.1.2).
    """
    for block in model.modules():
        if isinstance(block, InvertedResidual) and isinstance(block.expand, ConvNormAct):
            norm, conv = block.expand.norm, block.depthwise.conv
            channel = int(norm.weight.abs().argmin())
            norm.weight[channel] /= factor
            norm.bias[channel] /= factor
            conv.weight[channel] *= factor


def through(workload: Workload, *techniques: Technique) -> Workload:
    """The workload after techniques at all their sites, one after another."""
    for technique in techniques:
        sites = technique.sites(workload, capture(workload))
        workload = technique.apply(workload, sites).workload
    return workload


def as_workload(model: nn.Module, size: int) -> Workload:
    """The network with one scene as input and 100 training scenes to calibrate."""
    images, _ = clutter.scenes("train", size, noise=_task.NOISE, pieces=_task.PIECES)
    return Workload(model.eval(), (images[:1].clone(),), calibration=list(images[:100].split(20)))


def scores(seed: int, budget: _task.Budget) -> dict[str, float]:
    """Held-out accuracy of one trained network in every way of running it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = _task.trained(network(), seed, budget)
    blow_up(model)
    judge = _task.judge(budget.size)
    floats = through(as_workload(model, budget.size), FoldNorm())
    found = {"float": float(judge(floats.model).mean())}
    # The paper's own: biases take nothing back.
    plain = StaticInt8(smooth=False, correct=False)
    for name, technique in {
        "per-channel": plain,
        "per-layer": replace(plain, per_channel=False),
        "per-channel, 4-bit": replace(plain, weight_bits=4),
    }.items():
        found[name] = float(judge(through(floats, technique).model).mean())
    # Fine-tuning alone improves the float network: QAT is compared with the same without rounding.
    for name, bits in {"float, tuned": None, "QAT": 8, "QAT, 4-bit": 4}.items():
        found[name] = float(judge(_qat.trained(floats, bits, seed, budget)).mean())
    return found


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a checkpoint of the model holds."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


class Dense(nn.Module):
    """A chain of equal 3x3 convolutions, or of linears: compute-bound layers alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(256, 256, 3, padding=1) if kind == "convolution" else nn.Linear(1024, 1024)
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(1, 256, 28, 28)`` or ``(128, 1024)`` to the same shape."""
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


def dense(kind: str) -> Workload:
    """The chain as a workload, calibrated on random data."""
    torch.manual_seed(0)
    shape = (1, 256, 28, 28) if kind == "convolution" else (128, 1024)
    data = [torch.randn(shape) for _ in range(4)]
    return Workload(Dense(kind).eval(), (data[0],), calibration=data)


def int8_and_float(kind: str, threads: int) -> list[tuple[str, Callable[[], Any]]]:
    """The chain through OpenVINO in int8 and in fp32, ready to run (built in the timing child)."""
    plain = dense(kind)
    runs: list[tuple[str, Callable[[], Any]]] = []
    for name, workload in (("int8", through(plain, StaticInt8())), ("fp32", plain)):
        run = backend("openvino").lower(workload, threads=threads)
        runs.append((name, lambda run=run: run(*plain.inputs)))
    return runs


class QuantWhitepaperCard(Card):
    """Post-training and quantization-aware int8 on a small MobileNetV2 with uneven channels."""

    key = "quant-whitepaper"
    claim = (
        "8-bit weights per channel lose under 2 points after training and under 1 with training; "
        "per layer they fail on MobileNets; 4 times smaller, 2-3 times faster on CPUs"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "drop_per_channel": 0.02,
        "per_layer_minus_per_channel": 0.0,
        "drop_qat": 0.01,
        "size_ratio": 3.5,
        "speedup": 2.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Accuracy in torch's reference semantics; speed through OpenVINO, interleaved."""
        t = self.thresholds
        seeds = list(range(3 if scale == "quick" else 8))
        budget = _task.Budget(epochs=8 if scale == "quick" else 20)
        by = Paired.run(scores, seeds, budget, progress=progress)
        drops = {way: by.less(group[0], way) for group in (WAYS, TUNED) for way in group[1:]}
        worse = np.subtract(drops["per-layer"], drops["per-channel"]).tolist()
        figures: dict[str, Figure] = by.figures("accuracy", (*WAYS, *TUNED))
        large = stored_bytes(dense("linear").model)
        small = stored_bytes(through(dense("linear"), StaticInt8()).model)
        figures["size, fp32 over int8"] = counted(large / small, "x")
        checks = [
            _task.mean_check(
                "drop, per-channel", drops["per-channel"], "<=", t["drop_per_channel"]
            ),
            _task.mean_check(
                "drop, per-layer minus per-channel", worse, ">=", t["per_layer_minus_per_channel"]
            ),
            _task.mean_check("drop, QAT", drops["QAT"], "<=", t["drop_qat"]),
            Check("size, fp32 over int8", large / small, ">=", t["size_ratio"], unit="x"),
        ]
        reason = backend("openvino").available()
        if reason is not None:
            return Experiment(figures, checks, seeds, untestable=f"no int8 runtime: {reason}")
        for kind in ("convolution", "linear"):
            progress(f"timing int8 and fp32 {kind}s")
            rows = side_by_side(
                int8_and_float,
                kind,
                2,
                seconds=4 if scale == "quick" else 20,
                threads=2,
                limit_s=200,
            )
            speed: Figure = rows["fp32"]["ratio"]
            name = f"time, fp32 over int8, {kind}"
            figures[name] = speed
            figures[f"latency, int8, {kind}"] = rows["int8"]["latency"]
            figures[f"a/a ratio, {kind}"] = rows["a/a"]["ratio"]
            checks.append(Check(name, speed.known(), ">=", t["speedup"], half_width(speed), "x"))
        return Experiment(figures, checks, seeds)
