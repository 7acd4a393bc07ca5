"""Claim card of RepQuant: scale reparameterisation at W4A4 (Li et al. 2024, arXiv:2402.05628)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from paredown.analysis.vit_quantizers import signal_to_noise
from paredown.figure import Figure, counted
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)
from paredown.papers.cards import _scans, _task, _vits
from paredown.papers.cards._paired import Paired
from paredown.runtime.forms_low_bit import LowBitLinear
from paredown.runtime.quantized_attention import from_codes, to_codes
from paredown.techniques.quantize.ranges import channel_ranges
from paredown.techniques.quantize.repquant import RepQuant
from paredown.workload import Workload

WAYS: dict[str, RepQuant] = {
    "min-max": RepQuant(
        norms="layer", attention="uniform", search=False, clip_steps=0, reconstruct=False
    ),
    "RepQ-ViT": RepQuant(clip_steps=0, reconstruct=False),
    "RepQuant": RepQuant(),
}
KINDS = ("uniform", "log2", "log-sqrt2")


def folded(workload: Workload, bits: int = 4) -> tuple[int, float]:
    """Codes that a folded norm changes against its channels' own, and the fold's largest error.

    In float64, over all norms of the blocks and the calibration scans; the error is that of the
    next linear's float outputs relative to their largest.
    """
    model: Any = workload.own().model.double()
    changed, worst = 0, 0.0

    def look(norm: Any, linear: Any) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            nonlocal changed, worst
            ranges = channel_ranges(out.flatten(0, -2).float(), bits)
            r, b = ranges.fold()
            scale, zero = ranges.layer()
            gain, offset = norm.weight / r, norm.bias / r - b
            moved = torch.nn.functional.layer_norm(
                args[0], norm.normalized_shape, gain, offset, norm.eps
            )
            top = 2**bits - 1
            codes = torch.clamp(torch.round(moved / scale) + zero, 0, top)
            own = torch.clamp(torch.round(out / ranges.scale.double()) + ranges.zero, 0, top)
            changed += int((codes != own).sum())
            weight = linear.weight * r
            want, got = linear(out), moved @ weight.T + linear.bias + weight @ b
            worst = max(worst, float((want - got).abs().max() / want.abs().max()))

        return hook

    for block in model.blocks:
        block.norm1.register_forward_hook(look(block.norm1, block.attn.qkv))
        block.norm2.register_forward_hook(look(block.norm2, block.mlp.fc1))
    with torch.no_grad():
        model(workload.inputs[0].double())
    return changed, worst


def quality(seed: int, epochs: int) -> dict[str, float]:
    """Accuracy in floats and of every way at W4A4, signal to noise of attention weights, and how
    exact the fold is.
    """
    floats = _vits.spread(_vits.trained(seed, epochs), seed)
    judge = _scans.judge(_vits.plan(epochs))
    found = {"float32": float(judge(floats.model).mean())}
    for name, technique in WAYS.items():
        found[name] = float(judge(_vits.through(floats, technique).workload.model).mean())
    a = _vits.weights_of_attention(floats)
    for kind in KINDS:
        scale = a.max() / (15 if kind == "uniform" else 1)
        coded = from_codes(to_codes(a, scale, 4, kind), scale, 4, kind)
        found[f"dB, {kind}"] = signal_to_noise(a, coded)
    changed, off = folded(floats)
    return found | {"codes changed": changed, "fold error": off}


def sizes() -> tuple[int, int]:
    """Bytes of the coded linears' weights in floats and as they are held."""
    torch.manual_seed(0)
    model = _vits.ViT(_vits.CHANNELS, 1, 3, 10, 1, image_size=16, patch=4, mlp_ratio=2).eval()
    x = torch.randn(4, 1, 16, 16)
    way = RepQuant(clip_steps=0, reconstruct=False)
    after = _vits.through(Workload(model, (x,)), way).workload.model
    forms = [m for m in after.modules() if isinstance(m, LowBitLinear)]
    held = sum(m.weight.nbytes + m.scale.nbytes + m.zero.nbytes for m in forms)
    return sum(4 * m.in_features * m.out_features for m in forms), held


class RepQuantCard(Card):
    """A tiny ViT with spread channels: min-max, RepQ-ViT and RepQuant at 4 bits on both sides."""

    key = "repquant"
    claim = (
        "large gains over existing post-training quantization at 4-bit weights and activations "
        "of transformers, without retraining, by quantizers whose scales fold away exactly"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "codes_changed": 0.0,
        "fold_error": 1e-5,
        "repq_minus_minmax": 0.05,
        "repquant_minus_repq": 0.0,
        "drop": 0.06,
        "sqrt2_minus_log2_db": 0.0,
        "log2_minus_uniform_db": 0.0,
        "float_over_packed_bytes": 6.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; ranges from 64 training scans."""
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(4 if quick else 10))
        epochs = 16 if quick else 60
        by = Paired.run(quality, seeds, epochs, progress=progress)
        floats, packed = sizes()

        checks = [
            Check("codes that folding changes", sum(by["codes changed"]), "<=", t["codes_changed"]),
            Check("relative error of the fold", max(by["fold error"]), "<=", t["fold_error"]),
            _task.mean_check(
                "accuracy, RepQ-ViT minus min-max",
                by.less("RepQ-ViT", "min-max"),
                ">=",
                t["repq_minus_minmax"],
            ),
            _task.mean_check(
                "accuracy, RepQuant minus RepQ-ViT",
                by.less("RepQuant", "RepQ-ViT"),
                ">=",
                t["repquant_minus_repq"],
            ),
            _task.mean_check("drop, RepQuant", by.less("float32", "RepQuant"), "<=", t["drop"]),
            _decibels(
                "log-sqrt2 minus log2",
                by.less("dB, log-sqrt2", "dB, log2"),
                t,
                "sqrt2_minus_log2_db",
            ),
            _decibels(
                "log2 minus uniform", by.less("dB, log2", "dB, uniform"), t, "log2_minus_uniform_db"
            ),
            Check(
                "weight bytes, float32 over packed",
                floats / packed,
                ">=",
                t["float_over_packed_bytes"],
                unit="x",
            ),
        ]
        figures: dict[str, Figure] = {
            **by.figures("accuracy", ("float32", *WAYS)),
            **{f"attention weights, {k}": mean_figure(by[f"dB, {k}"], "dB") for k in KINDS},
            "weight bytes, float32 over packed": counted(floats / packed, "x"),
        }
        table = by.rows("way", "accuracy", ("float32", *WAYS))
        return Experiment(figures, checks, seeds, {"accuracy": table})


def _decibels(what: str, values: list[float], t: dict[str, float], key: str) -> Check:
    """A mean over seeds of differences in dB, with its own half-width as power."""
    mean, half = mean_and_power(values)
    return Check(f"attention weights' signal to noise, {what}", mean, ">=", t[key], half, "dB")
