"""Claim card of the survey of quantized vision transformers (Du et al. 2024, arXiv:2405.00314)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.analysis import integer as ints
from paredown.analysis.integer_vit import IntegerViT
from paredown.analysis.vit_quantizers import Place, bench, profile
from paredown.figure import Figure
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task, _vits
from paredown.papers.cards._paired import Paired
from paredown.techniques.quantize.repquant import RepQuant
from paredown.workload import Workload

PLAIN: dict[str, Any] = {"clip_steps": 0, "reconstruct": False}
METHODS: dict[str, dict[str, Any]] = {
    "min-max": {"norms": "layer", "attention": "uniform", "search": False, **PLAIN},
    "least error": {"norms": "layer", "attention": "uniform", **PLAIN},
    "FQ-ViT": {"norms": "power-of-two", "attention": "log2", **PLAIN},
    "RepQ-ViT": PLAIN,
    "RepQuant": {},
}
WIDTHS = (8, 6, 4, 3)
SPECIAL = ("FQ-ViT", "RepQ-ViT", "RepQuant")


class NoFloats(TorchDispatchMode):
    """Counts the floating-point tensors that operators make while entered."""

    def __init__(self) -> None:
        super().__init__()
        self.floats, self.calls = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, look at its result."""
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        each = out if isinstance(out, (list, tuple)) else (out,)
        self.floats += sum(isinstance(t, Tensor) and t.is_floating_point() for t in each)
        return out


def tensors(workload: Workload) -> dict[Place, Tensor]:
    """What the second block's norm, softmax and GELU make on one calibration batch."""
    found: dict[Place, Tensor] = {}
    model: Any = workload.copy().model
    block = model.blocks[1]
    block.norm1.register_forward_hook(lambda _m, _a, out: found.__setitem__("norm", out))
    block.mlp.act.register_forward_hook(lambda _m, _a, out: found.__setitem__("gelu", out))
    with torch.no_grad():
        model(*workload.inputs)
    found["softmax"] = _vits.weights_of_attention(workload).reshape(-1, 17)
    return found


def quality(seed: int, epochs: int) -> dict[str, float]:
    """Accuracy of every method at every width and of the integer-only network."""
    plain = _vits.trained(seed, epochs)
    floats = _vits.spread(plain, seed)
    judge = _scans.judge(_vits.plan(epochs))
    found = {"float32": float(judge(floats.model).mean())}
    for name, knobs in METHODS.items():
        for bits in WIDTHS:
            way = RepQuant(weight_bits=bits, activation_bits=bits, **knobs)
            model = _vits.through(floats, way).workload.model
            found[f"{name} W{bits}A{bits}"] = float(judge(model).mean())
    # The integer-only network has one range after each norm: it is made of the network as trained.
    assert plain.calibration is not None
    for exp in ("shift", "poly"):
        network = IntegerViT(plain.model, plain.calibration, exp=exp)
        scores = [
            (network(x).argmax(-1) == y).double()
            for x, y in zip(judge.images.split(128), judge.labels.split(128), strict=True)
        ]
        found[f"integer only, {exp}"] = float(torch.cat(scores).mean())
    codes = torch.clamp(torch.round(plain.inputs[0] / network.image_scale), -127, 127).long()
    with NoFloats() as look:
        network.run(codes)
    seen = tensors(plain)
    for row in bench(tensors(floats)):
        found[f"dB, {row.method}, {row.place}, {row.bits}"] = row.decibels
    return found | {
        "floats made": look.floats,
        "integer operators": look.calls,
        "channel ratio": profile(seen["norm"]).channel_ratio,
        "power law": profile(seen["softmax"]).power_law,
        "asymmetry": profile(seen["gelu"]).asymmetry,
    }


def largest_errors() -> dict[str, float]:
    """Largest errors of the integer-only functions on every 8-bit input of a usual scale."""
    scale = 0.04
    i = torch.arange(-127, 128)
    x = (i * scale).double()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (4096, 17), generator=generator)
    stream = torch.randint(-30000, 30000, (512, 48), generator=generator)
    exact = (rows * scale).double().softmax(-1)
    found: dict[str, float] = {}
    for exp in ("shift", "poly"):
        value, unit = ints.softmax(rows, scale, exp=exp)
        found[f"softmax, {exp}"] = float((value * unit - exact).abs().max())
    for name, (value, unit) in {
        "GELU, shift": ints.shift_gelu(i[:, None], scale),
        "GELU, poly": ints.poly_gelu(i[:, None], scale),
    }.items():
        found[name] = float(((value * unit)[:, 0] - F.gelu(x)).abs().max())
    value, unit = ints.normalised(stream)
    want = F.layer_norm(stream.double(), (48,), eps=0.0)
    found["layer norm"] = float((value * unit - want).abs().max())
    return found


class ViTQuantSurveyCard(Card):
    """Five post-training methods at four widths, as tensors and networks; integers alone."""

    key = "vit-quant-survey"
    claim = (
        "plain uniform quantization after training collapses below about 6-bit activations where "
        "quantizers made for vision transformers keep accuracy; integer-only softmax, GELU and "
        "layer norm make a network without floats"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "special_minus_minmax_at_4": 0.05,
        "drop_at_8": 0.005,
        "minmax_drop_at_4": 0.05,
        "channel_ratio": 4.0,
        "power_law": 0.3,
        "asymmetry": 4.0,
        "softmax_error": 0.05,
        "gelu_error": 0.06,
        "layer_norm_error": 0.002,
        "floats_made": 0.0,
        "integer_drop": 0.02,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; ranges from 64 training scans."""
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(2 if quick else 8))
        epochs = 16 if quick else 60
        errors = largest_errors()
        by = Paired.run(quality, seeds, epochs, progress=progress)

        best = max(SPECIAL, key=lambda n: sum(by[f"{n} W4A4"]))
        worst = max(METHODS, key=lambda n: sum(by.less("float32", f"{n} W8A8")))
        checks = [
            _task.mean_check(
                f"accuracy at W4A4, {best} minus min-max",
                by.less(f"{best} W4A4", "min-max W4A4"),
                ">=",
                t["special_minus_minmax_at_4"],
            ),
            _task.mean_check(
                f"drop at W8A8, {worst}", by.less("float32", f"{worst} W8A8"), "<=", t["drop_at_8"]
            ),
            _task.mean_check(
                "drop at W4A4, min-max",
                by.less("float32", "min-max W4A4"),
                ">=",
                t["minmax_drop_at_4"],
            ),
            *(
                Check(what, min(by[key]), ">=", t[key.replace(" ", "_")])
                for what, key in (
                    ("after a norm, widest channel over the middle one", "channel ratio"),
                    ("after softmax, share below a hundredth of the largest", "power law"),
                    ("after GELU, largest over least value", "asymmetry"),
                )
            ),
            *(
                Check(
                    f"largest error, integer {name}",
                    value,
                    "<=",
                    t[f"{name.partition(',')[0].replace(' ', '_').lower()}_error"],
                )
                for name, value in errors.items()
            ),
            Check(
                "floats made by the integer network", max(by["floats made"]), "<=", t["floats_made"]
            ),
            _task.mean_check(
                "drop, integers alone",
                by.less("float32", "integer only, shift"),
                "<=",
                t["integer_drop"],
            ),
        ]
        names = ("float32", *(n for n in by if " W" in n or n.startswith("integer only")))
        figures: dict[str, Figure] = by.figures("accuracy", names)
        rows: list[dict[str, Any]] = []
        for name in (n for n in by if n.startswith("dB, ")):
            method, place, bits = name.removeprefix("dB, ").rsplit(", ", 2)
            rows.append(
                {"method": method, "after": place, "bits": int(bits), "decibels": by.mean(name)}
            )
        grid = [
            {"method": n, "bits": b, "accuracy": by.mean(f"{n} W{b}A{b}")}
            for n in METHODS
            for b in WIDTHS
        ]
        return Experiment(figures, checks, seeds, {"accuracy": grid, "decibels": rows})
