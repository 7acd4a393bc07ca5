"""Claim card of block fusion: On the Efficiency of CNNs (Lavin 2024, arXiv:2404.03617).

The native engine makes an expansion inside of its depthwise convolution; the projection behind them
is a kernel of its own, so one inner tensor is still written. The card counts that, compares bits
with the same kernels layer by layer, and times the block against oneDNN layer by layer, with its
weights reordered ahead and activations fused. Networks are not trained: accuracy is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paredown import kernels, recipe, runtime
from paredown.cost.price import price
from paredown.errors import LoweringError
from paredown.figure import counted, predicted
from paredown.graph.capture import capture
from paredown.measure import calibrate
from paredown.nn.conv import ConvNormAct
from paredown.nn.inverted import InvertedResidual, folded
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards.sparse_kernels import over, speed_check
from paredown.papers.timing import side_by_side
from paredown.runtime.gate import gate
from paredown.runtime.native.plan import Plan
from paredown.targets import resolve
from paredown.workload import Workload

Run = Callable[[], Any]
SHAPES = ((112, 16), (112, 24), (56, 64))
"""Side and channels of blocks: at six times the channels 2.4, 3.6 and 2.4 MB in bfloat16.

oneDNN has no fast bfloat16 kernel for 16 channels, which says little of fusion: the worst counts.
"""
COMPARED = ((15, 8), (28, 24), (112, 16))
"""Blocks whose bits are compared, one with odd rows."""
RATIO = 6
NETWORKS = ("convnext-tiny", "convfirst")
THREADS = 2
SAME = 0.02
"""Relative difference that bfloat16 may make: one folds the norms in float32, one in bfloat16."""


def block(channels: int) -> InvertedResidual:
    """An inverted residual without its skip, norms with statistics of their own."""
    torch.manual_seed(channels)
    made = InvertedResidual(channels, channels, expand=RATIO, skip="none").eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return made


def lowered(model: nn.Module, x: Tensor) -> tuple[Any, Workload]:
    """A network in bfloat16 on the native engine, its outputs checked, and its workload."""
    plain = Workload(model, (x,))
    found = recipe.run(recipe.parse_inline("bf16"), plain).workload
    executable = runtime.backend("native").lower(found, threads=THREADS)
    gate(executable, found).demand()
    return executable, found


def layers(made: InvertedResidual) -> list[ConvNormAct]:
    """The block's convolutions with what follows them, in order."""
    parts = [made.expand, made.depthwise, made.project]
    return [part for part in parts if isinstance(part, ConvNormAct)]


def off_by(side: int, channels: int) -> float:
    """Largest difference of the block in one plan from its layers in a plan each."""
    torch.manual_seed(0)
    made, x = block(channels), torch.randn(1, channels, side, side)
    whole, _ = lowered(made, x)
    if not any(step.op == "expand_depthwise" for step in whole.plan.steps):
        raise AssertionError(f"a block of {channels} channels at {side} was not fused")
    with torch.inference_mode():
        wanted = x
        for part in layers(made):
            wanted = lowered(part, wanted)[0](wanted)
        return float((whole(x) - wanted).abs().max())


def moved(plan: Plan) -> int:
    """Bytes that the steps of a plan read and write, weights once."""
    shapes = [c.shape for c in plan.constants.values() if c.pack]
    weights = sum(2 * s["out"] * s["in"] // s["groups"] * s["kh"] * s["kw"] for s in shapes)
    tensors = (t for s in plan.steps if s.op in KERNELS for t in s.tensors.values())
    return weights + sum(t.numel * (4 if t.dtype == "float32" else 2) for t in tensors)


KERNELS = ("expand_depthwise", "mlp", "gemm", "conv", "depthwise")
"""Steps of the block itself; around them the plan converts between types and layouts."""


def traffic(side: int, channels: int) -> dict[str, int]:
    """Bytes moved by the fused block, by its layers, and by a block that keeps all inside."""
    made, x = block(channels), torch.zeros(1, channels, side, side)
    whole, _ = lowered(made, x)
    inner = 2 * side * side * channels * RATIO
    ends = 2 * 2 * side * side * channels
    weights = 2 * (2 * channels * channels * RATIO + 9 * channels * RATIO)
    return {
        "fused": moved(whole.plan),
        "layers": ends + 4 * inner + weights,
        "least": ends + weights,
        "inner": inner,
    }


def onednn(part: ConvNormAct, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A folded convolution by oneDNN in bfloat16, and its output for ``x``."""
    weight, bias = (t.bfloat16() for t in folded(part))
    conv = part.conv
    pad, stride, dilation = ([*map(int, v)] for v in (conv.padding, conv.stride, conv.dilation))
    groups = conv.groups
    ready = torch.ops.mkldnn._reorder_convolution_weight(
        weight, pad, stride, dilation, groups, list(x.shape)
    )
    relu6 = isinstance(part.act, nn.ReLU6)
    ends = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")

    def run(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, ready, bias, pad, stride, dilation, groups, *ends
        )

    return run, run(x)


@torch.inference_mode()
def by_layers(made: InvertedResidual, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The block by oneDNN, layer by layer, from and to bfloat16 pixels of channels."""
    runs: list[Callable[[Tensor], Tensor]] = []
    for part in layers(made):
        run, x = onednn(part, x)
        runs.append(run)

    def whole(x: Tensor) -> Tensor:
        for run in runs:
            x = run(x)
        return x

    return whole


class Bfloat16(nn.Module):
    """A network whose input and output are bfloat16, pixels of channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same layout."""
        return self.model(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@torch.inference_mode(False)
def blocks(side: int, channels: int) -> list[tuple[str, Run]]:
    """Layer by layer by oneDNN and the engine's plan on the same input (in the timing child)."""
    made = block(channels)
    x = torch.randn(1, side, side, channels).bfloat16()
    half = Workload(Bfloat16(block(channels)).bfloat16(), (x,))
    native = runtime.backend("native").lower(half, threads=THREADS)
    gate(native, half).demand()
    nchw = x.permute(0, 3, 1, 2)
    vendor = by_layers(made, nchw)
    got, wanted = native(x).float(), vendor(nchw).permute(0, 2, 3, 1).float()
    error = float((got - wanted).norm() / wanted.norm())
    if error > SAME:
        raise LoweringError(f"the block and oneDNN's layers differ by {error:.2g}: not timed")
    return [("oneDNN", lambda: vendor(nchw)), ("fused", lambda: native(x))]


@torch.inference_mode(False)  # networks are made and captured here
def networks() -> list[tuple[str, Run]]:
    """Both networks in bfloat16 on the native engine, batch 1 (in the timing child)."""
    subjects: list[tuple[str, Run]] = []
    for name in NETWORKS:
        found = resolve(f"zoo:{name}", random_weights=True)
        run, half = lowered(found.model, found.inputs[0])
        subjects.append((name, lambda run=run, half=half: run(*half.inputs)))
    return subjects


class ConvFirstCard(Card):
    """Bits, bytes and time of fused blocks; efficiency of two networks and the bound on it."""

    key = "convfirst"
    claim = (
        "a block fused into one kernel is at least 1.5 times as fast as layer by layer where its "
        "inner tensors exceed L2, moves its input, output and weights alone, and the waterline "
        "bounds efficiency; ConvFirst runs about four times as fast as ConvNeXt, more efficiently"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "bits": 0.0,
        "expansion_bytes": 0.0,
        "bytes": 1.0,
        "speed_up": 1.5,
        "e_over_e_max": 1.0,
        "network": 3.0,
        "efficiency": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Blocks and networks in bfloat16 on two threads, batch 1."""
        if (why := kernels.why_missing()) is not None:
            return Experiment({}, [], [0], untestable=why)
        quick, t = scale == "quick", self.thresholds
        progress("fused against layer by layer")
        worst = max(off_by(side, channels) for side, channels in COMPARED)
        rows: list[dict[str, float]] = [
            {"side": s, "channels": c, **traffic(s, c)} for s, c in SHAPES
        ]
        # Writing the expanded tensor and reading it is what fusion saves, neither more nor less.
        kept = max(abs(r["layers"] - r["fused"] - 2 * r["inner"]) for r in rows)
        extra = max(r["fused"] / r["least"] for r in rows)
        progress("timing blocks")
        seconds = 3.0 if quick else 30.0
        timed = [
            side_by_side(blocks, s, c, seconds=seconds, threads=THREADS, limit_s=seconds + 120)
            for s, c in SHAPES
        ]
        for row, found in zip(rows, timed, strict=True):
            row["times_as_fast"] = over(found, "oneDNN", "fused")[0]
        worst_timed = min(timed, key=lambda r: over(r, "oneDNN", "fused")[0])
        progress("timing networks")
        nets = side_by_side(
            networks, seconds=2 * seconds, threads=THREADS, limit_s=2 * seconds + 180
        )
        found = [_bounded(name, nets[name]["latency"].known()) for name in NETWORKS]
        speed, power = over(nets, *NETWORKS)
        gain = speed * found[1]["macs"] / found[0]["macs"]
        checks = [
            Check("largest difference from layer by layer", worst, "<=", t["bits"]),
            Check("bytes of the expanded tensor in memory", kept, "<=", t["expansion_bytes"]),
            Check("bytes over input, output and weights", extra, "<=", t["bytes"], unit="x"),
            speed_check(
                "over oneDNN layer by layer, worst shape",
                worst_timed,
                "oneDNN",
                "fused",
                t["speed_up"],
            ),
            Check(
                "efficiency over the waterline's bound, worst network",
                max(r["efficiency"] / r["e_max"] for r in found),
                "<=",
                t["e_over_e_max"],
            ),
            speed_check("ConvFirst over ConvNeXt-T, time", nets, *NETWORKS, t["network"]),
            Check(
                "ConvFirst over ConvNeXt-T, efficiency",
                gain,
                ">=",
                t["efficiency"],
                power * gain / speed,
                "x",
            ),
        ]
        figures = {
            f"time over oneDNN, {s}x{s}x{c}": r["fused"]["ratio"]
            for (s, c), r in zip(SHAPES, timed, strict=True)
        }
        figures |= {name: nets[name]["latency"] for name in NETWORKS}
        figures |= {f"e_max, {r['network']}": predicted(r["e_max"], "1") for r in found}
        figures |= {f"MACs, {r['network']}": counted(r["macs"], "MAC") for r in found}
        return Experiment(figures, checks, [0], {"blocks": rows, "networks": found})


def _bounded(name: str, seconds: float) -> dict[str, Any]:
    """Efficiency of a network in ``seconds`` and the waterline's bound on it, this device."""
    found = resolve(f"zoo:{name}", random_weights=True)
    half = recipe.run(recipe.parse_inline("bf16"), found).workload
    priced = price(capture(half), calibrate.this(), backend="native")
    line = priced.waterline()
    return {
        "network": name,
        "macs": priced.macs.known(),
        "seconds": seconds,
        "efficiency": line["ideal_s"] / seconds,
        "e_max": line["e_max"],
        "gap_s": seconds - line["ideal_s"],
    }
