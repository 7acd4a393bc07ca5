"""Claim card of quantized distillation (Polino et al. 2018, arXiv:1802.05668)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.runtime.torch_lowering import held_bytes
from paredown.techniques.quantize.quantized_distillation import QuantizedDistillation
from paredown.techniques.recover import Plan, train
from paredown.workload import TrainingData, Workload
from paredown.workloads.fit import Phase, fit

WIDTHS = {"teacher": (32, 64, 64), "student": (16, 24, 24)}
BITS = (2, 4)
WAYS: dict[str, dict[str, Any]] = {
    "after training": {"steps": 0},
    "cross-entropy alone": {"task": 1.0},
    "quantized distillation": {},
    "points": {"method": "points"},
}


def network(name: str) -> nn.Module:
    """A CNN of three convolutions and one linear, without norms."""
    a, b, c = WIDTHS[name]
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(a, b, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * c, 10),
    )


def scores(seed: int, epochs: int) -> dict[str, float]:
    """Held-out accuracy of the teacher, its student, and the student's codes in every way."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    how = _scans.Plan(epochs, rate=3e-3)
    judge, scans = _scans.judge(how), _scans.Scans(how)
    teacher = network("teacher")
    fit(teacher, [Phase(scans, epochs)], rate=how.rate, seed=seed, loss=F.cross_entropy)
    student = network("student")
    data = TrainingData(scans, F.cross_entropy)
    steps = epochs * (720 // how.batch)
    plan = Plan(steps, how.rate, task=0.3, checks=1, seed=seed)
    train(student, teacher, data, plan)
    found = {"teacher": float(judge(teacher).mean()), "student": float(judge(student).mean())}
    floats = Workload(student, (judge.images[:8],), training=data, original=teacher)
    graph = capture(floats)
    for bits in BITS:
        for name, knobs in WAYS.items():
            settings: dict[str, Any] = {"steps": steps // 2, "lr": 1e-3, "seed": seed, **knobs}
            way = QuantizedDistillation(bits, **settings)
            model = way.apply(floats, way.sites(floats, graph)).workload.model
            found[f"{name}, {bits} bits"] = float(judge(model).mean())
            if bits == 4:
                found["bytes"] = held_bytes(teacher) / held_bytes(model)
    return found


class QuantizedDistillationCard(Card):
    """A student of a seventh of its teacher's weights in 2 and 4 bits, four ways."""

    key = "quantized-distillation"
    claim = (
        "quantized shallow students reach accuracy close to full-precision teachers at an order "
        "of magnitude compression; both ways of training codes beat quantizing after training"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "weights_minus_after_at_2": 0.0,
        "points_minus_after_at_2": 0.0,
        "weights_minus_after_at_4": 0.0,
        "points_minus_after_at_4": 0.0,
        "drop_from_teacher_at_4": 0.01,
        "bytes_ratio": 10.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; the student is distilled in floats first."""
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(4 if quick else 10))
        epochs = 8 if quick else 40
        by = Paired.run(scores, seeds, epochs, progress=progress)

        checks = [
            _task.mean_check(
                f"accuracy at {bits} bits, {name} minus after training",
                by.less(f"{name}, {bits} bits", f"after training, {bits} bits"),
                ">=",
                t[f"{key}_minus_after_at_{bits}"],
            )
            for bits in BITS
            for key, name in (("weights", "quantized distillation"), ("points", "points"))
        ]
        ratio = by["bytes"][0]
        networks = [n for n in by if n != "bytes"]
        checks += [
            _task.mean_check(
                "drop from the teacher, quantized distillation at 4 bits",
                by.less("teacher", "quantized distillation, 4 bits"),
                "<=",
                t["drop_from_teacher_at_4"],
            ),
            Check("bytes, teacher over student", ratio, ">=", t["bytes_ratio"], unit="x"),
        ]
        figures: dict[str, Figure] = {
            **by.figures("accuracy", networks),
            "bytes, teacher over student": counted(ratio, "x"),
        }
        table = by.rows("network", "accuracy", networks)
        return Experiment(figures, checks, seeds, {"accuracy": table})
