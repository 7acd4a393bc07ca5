"""Claim card of bit-level scaling of image generators (Ding et al. 2025, arXiv:2501.06218)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.analysis.bit_scaling import (
    Point,
    changed,
    drift,
    pareto,
    payload_bits,
    sweep,
    total_bits,
)
from paredown.figure import Figure
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _pixels, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.cards.generation import NoisyDigits
from paredown.papers.cards.generation import Plan as Noise
from paredown.techniques.quantize.quantized_distillation import QuantizedDistillation
from paredown.workload import TrainingData, Workload
from paredown.workloads.digits import CLASSES
from paredown.workloads.fit import Phase, fit

CHANNELS: dict[Scale, tuple[int, ...]] = {"quick": (16, 24), "full": (16, 24, 32)}
MIDDLE, DEPTH, BUCKET = 24, 2, 64
"""The size that is trained as codes and diagnosed; blocks of all; values that share a scale."""
BITS = (8, 4, 3, 2)
STYLES = ("pixels", "diffusion")
TOP = 3
"""Of 17 levels, those that TopKLD takes in reverse."""
WAYS: dict[str, dict[str, Any]] = {
    "TopKLD": {"distance": "topkld", "top": TOP, "task": 0.0},
    "forward KL": {"distance": "topkld", "top": 0, "task": 0.0},
    "cross-entropy": {"task": 1.0},
    "TopKLD, floats": {"distance": "topkld", "top": TOP, "task": 0.0, "grid": "float"},
}
FLOATS = (4, 3)
"""Widths at which codes are numbers of a small float, too."""


@dataclass(frozen=True)
class Plan:
    """Epochs of the pixel transformers, steps of the diffusion models and of training codes,
    samples to judge.
    """

    epochs: int
    denoising: int
    codes: int
    samples: int
    channels: tuple[int, ...]
    sampler: int = 20


def pixel_workload(model: nn.Module) -> Workload:
    """The next pixel's logits on training scans."""
    data = TrainingData(_pixels.Sequences(48), _pixels.next_pixel)
    tokens = _pixels.sequences(held_out=True)[0][:16]
    return Workload(model.eval(), (tokens,), training=data, original=model)


def noise_workload(model: nn.Module) -> Workload:
    """The noise of noisy scans."""
    batches = NoisyDigits(Noise(1, 16), _pixels.PROCESS)
    torch.manual_seed(0)
    (inputs, _), *_ = batches()
    return Workload(
        model.eval(), inputs, training=TrainingData(batches, F.mse_loss), original=model
    )


def coded(work: Workload, bits: int, **knobs: Any) -> nn.Module:
    """The network with codes for weights; not trained unless ``steps`` says so."""
    settings: dict[str, Any] = {"steps": 0, **knobs}
    way = QuantizedDistillation(bits, bucket=BUCKET, **settings)
    return way.apply(work, way.sites(work, capture(work))).workload.model


def off_by(work: Workload, model: nn.Module, bits: int) -> int:
    """Bits that a coded network takes beyond what shapes alone foretell."""
    way = QuantizedDistillation(bits, bucket=BUCKET, steps=0)
    at = [site.partition(":")[0] for site in way.sites(work, capture(work)).ok]
    return payload_bits(model) - total_bits(work.model, at, bits, BUCKET)


class Judge:
    """Draws shared by every network: classes, Gumbel noise for pixels, normal noise for latents."""

    def __init__(self, plan: Plan) -> None:
        generator = torch.Generator().manual_seed(11)
        self.plan, self.classes = plan, torch.arange(plan.samples) % CLASSES
        shape = (plan.samples, _pixels.PIXELS, _pixels.LEVELS)
        self.gumbel = -(-torch.rand(shape, generator=generator).clamp(1e-9).log()).log()
        self.noise = torch.randn(plan.samples, 1, 8, 8, generator=generator)

    def pixels(self, model: Any) -> float:
        """Distance of a pixel transformer's samples."""
        return _pixels.distance(_pixels.pictures(model.sample(self.classes, self.gumbel)[0]))

    def path(self, model: nn.Module) -> list[Tensor]:
        """A diffusion model's samples after every step."""
        return _pixels.denoised(model, self.classes, self.noise, self.plan.sampler)

    def diffusion(self, model: nn.Module) -> float:
        """Distance of a diffusion model's samples."""
        return _pixels.distance(self.path(model)[-1])


def trained(style: str, channels: int, seed: int, plan: Plan) -> Workload:
    """A network of one style and size."""
    torch.manual_seed(seed)
    if style == "pixels":
        model: nn.Module = _pixels.PixelTransformer(channels, DEPTH)
        phase = Phase(_pixels.Sequences(48), plan.epochs)
        fit(model, [phase], rate=6e-3, seed=seed, loss=_pixels.next_pixel, average=20)
        return pixel_workload(model)
    model = _pixels.small_dit(channels, DEPTH)
    phase = Phase(NoisyDigits(Noise(plan.denoising), _pixels.PROCESS), 1)
    fit(model, [phase], rate=1.5e-2, seed=seed, loss=F.mse_loss, average=50)
    return noise_workload(model)


def scores(job: int, plan: Plan) -> dict[str, float]:
    """Distances of one style at every size and width, and what its middle size shows (a worker).

    Jobs count the seeds, style by style: 2 is the first style with seed 1.
    """
    torch.set_num_threads(1)
    seed, style = job // len(STYLES), STYLES[job % len(STYLES)]
    judge, found = Judge(plan), dict[str, float]()
    quality: Callable[[Any], float] = getattr(judge, style)
    for channels in plan.channels:
        work = trained(style, channels, seed, plan)
        name = f"{style} {channels}"
        found[name] = quality(work.model)
        rows = sweep(
            {name: work.model},
            lambda _, bits, work=work: coded(work, bits),
            lambda model: -quality(model),
            weight_bits=BITS,
            activation_bits=(16, 8) if channels == MIDDLE else (16,),
        )
        for row in rows:
            key = f"{name} W{row.weight_bits}A{row.activation_bits}"
            found[key], found[f"bits, {key}"] = -row.quality, row.total_bits
        if channels == MIDDLE:
            found |= diagnosed(style, work, judge)
            found[f"payload off, {style}"] = off_by(work, coded(work, 3), 3)
            if style == "pixels":
                found |= retrained(work, seed, plan, quality)
    return found


def retrained(
    work: Workload, seed: int, plan: Plan, quality: Callable[[Any], float]
) -> dict[str, float]:
    """Distances of small floats after training, and of 3 bits trained in every way."""
    found = {
        f"pixels {MIDDLE} F{bits}": quality(coded(work, bits, grid="float")) for bits in FLOATS
    }
    for way, knobs in WAYS.items():
        settings = {"steps": plan.codes, "lr": 2e-3, "seed": seed, **knobs}
        found[way] = quality(coded(work, 3, **settings))
    return found


def diagnosed(style: str, work: Workload, judge: Judge) -> dict[str, float]:
    """Share of choices changed, or drift of the samples, at each width."""
    found: dict[str, float] = {}
    model: Any = work.model
    if style == "pixels":
        pixels, logits = model.sample(judge.classes, judge.gumbel)
        tokens = torch.cat(((judge.classes + _pixels.LEVELS).unsqueeze(1), pixels[:, :-1]), 1)
        for bits in BITS:
            with torch.no_grad():
                other = coded(work, bits)(tokens)
            found[f"choices changed, W{bits}"] = float(changed(logits, other, judge.gumbel).mean())
        return found
    path = judge.path(model)
    for bits in BITS:
        other = judge.path(coded(work, bits))
        found[f"drift, W{bits}"] = drift(path[1:], other[1:])[-1]
    return found


def worse(by: Paired, style: str, bits: int, sizes: Sequence[int]) -> list[float]:
    """Mean over the sizes of log(distance of the codes over that of floats), seed by seed."""
    each = [
        [math.log(1 + x) for x in by.over(f"{style} {c} W{bits}A16", f"{style} {c}")] for c in sizes
    ]
    return [sum(values) / len(values) for values in zip(*each, strict=True)]


class BitScalingCard(Card):
    """Pixel transformers and diffusion models of three sizes at four widths; codes trained."""

    key = "bit-level-scaling-vgen"
    claim = (
        "language-style generators lose less than diffusion-style ones when quantized, and "
        "training codes by TopKLD gains a level of precision, more than forward divergence or "
        "cross-entropy do"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "payload_off": 0.0,
        "pixels_minus_diffusion_at_4": 0.0,
        "pixels_minus_diffusion_at_3": 0.0,
        "topkld_over_forward": 0.0,
        "topkld_over_cross_entropy": 0.0,
        "topkld_at_3_over_4_bits": 0.0,
        "topkld_floats_at_3_over_4_bits": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Fréchet distance over a classifier's features, paired by seed."""
        quick, sizes = scale == "quick", CHANNELS[scale]
        seeds = list(range(3 if quick else 10))
        plan = Plan(12, 500, 50, 300, sizes) if quick else Plan(80, 8000, 600, 1000, sizes)
        jobs = range(len(STYLES) * len(seeds))
        each = _task.over_seeds(scores, jobs, plan, progress=progress)
        pairs = zip(*(each[i :: len(STYLES)] for i in range(len(STYLES))), strict=True)
        by = Paired(seeds, [a | b for a, b in pairs])
        t, middle = self.thresholds, f"pixels {MIDDLE}"

        def gap(name: str, a: str, b: str, key: str) -> Check:
            logs = [math.log(1 + x) for x in by.over(a, b)]
            return _task.mean_check(name, logs, "<=", t[key])

        checks = [
            Check(
                "bits of the payload beyond those foretold",
                max(abs(x) for style in STYLES for x in by[f"payload off, {style}"]),
                "<=",
                t["payload_off"],
            ),
            *(
                _task.mean_check(
                    f"log rise of the distance at {bits} bits, pixels minus diffusion",
                    np.subtract(
                        worse(by, "pixels", bits, sizes), worse(by, "diffusion", bits, sizes)
                    ).tolist(),
                    "<=",
                    t[f"pixels_minus_diffusion_at_{bits}"],
                )
                for bits in (4, 3)
            ),
            gap(
                "log distance at 3 bits, TopKLD over forward KL",
                "TopKLD",
                "forward KL",
                "topkld_over_forward",
            ),
            gap(
                "log distance at 3 bits, TopKLD over cross-entropy",
                "TopKLD",
                "cross-entropy",
                "topkld_over_cross_entropy",
            ),
            gap(
                "log distance, 3 bits by TopKLD over 4 bits after training",
                "TopKLD",
                f"{middle} W4A16",
                "topkld_at_3_over_4_bits",
            ),
            gap(
                "the same, numbers of small floats",
                "TopKLD, floats",
                f"{middle} F4",
                "topkld_floats_at_3_over_4_bits",
            ),
        ]
        floats = [f"{style} {c}" for style in STYLES for c in sizes]
        figures: dict[str, Figure] = {
            **by.figures("distance", [*floats, *WAYS, *(f"{middle} F{b}" for b in FLOATS)]),
            **by.figures("share", [n for n in by if n.startswith("choices")]),
            **by.figures("relative", [n for n in by if n.startswith("drift")]),
        }
        return Experiment(figures, checks, seeds, tables(by))


def tables(by: Paired) -> dict[str, list[dict[str, Any]]]:
    """Every model at every precision, and the front of each style."""
    points = [
        Point(n.split(" W")[0], *widths(n), round(by.mean(f"bits, {n}")), -by.mean(n))
        for n in by
        if " W" in n and n.split()[0] in STYLES
    ]
    rows = [
        {
            "model": p.model,
            "weights": p.weight_bits,
            "activations": p.activation_bits,
            "bits": p.total_bits,
            "distance": -p.quality,
        }
        for p in points
    ]
    front = [
        {"style": style, "model": p.model, "weights": p.weight_bits, "bits": p.total_bits}
        for style in STYLES
        for p in pareto(q for q in points if q.model.startswith(style))
    ]
    return {"distance": rows, "front": front}


def widths(name: str) -> tuple[int, int]:
    """Weight and activation bits of a name as "pixels 24 W4A16"."""
    weights, _, activations = name.rpartition(" W")[2].partition("A")
    return int(weights), int(activations)
