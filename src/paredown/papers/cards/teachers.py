"""Claim card of ScaleKD: a small transformer teaches a CNN and a mixer (Fan et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from paredown.figure import Figure
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.techniques.distill.cross import CrossDistillation
from paredown.techniques.distill.frequency import dct, idct, without_mean
from paredown.techniques.distill.recover import Recover
from paredown.workload import TrainingData, Workload
from paredown.workloads.fit import Phase, fit
from paredown.zoo.mlp_mixer import MlpMixer
from paredown.zoo.vit import ViT

SIDE, NOISE, RATE = 16, 0.3, 3e-3
KEPT = 360
"""Scans that students train on, of the 720 that their teachers have."""
WIDTHS = {"narrow": 24, "wide": 48}
"""Channels of the teachers."""
STUDENTS = ("CNN", "mixer")
WAYS = ("labels", "logits", "ScaleKD")


def student(name: str) -> nn.Module:
    """A CNN of three convolutions or a mixer of two layers, about 10 thousand weights each."""
    if name == "mixer":
        return MlpMixer(24, 2, 32, 48, 10, 1, image_size=SIDE, patch=4)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, 1, 1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, 2, 1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def teacher(width: int, seed: int, epochs: int) -> nn.Module:
    """A trained transformer of three blocks."""
    torch.manual_seed(seed)
    model = ViT(width, 3, width // 8, 10, 1, image_size=SIDE, patch=4, mlp_ratio=2)
    phase = Phase(_scans.Scans(_plan(epochs, batch=36)), epochs)
    fit(model, [phase], rate=RATE, seed=seed, loss=F.cross_entropy, average=20)
    return model


def _plan(epochs: int, batch: int = 24) -> _scans.Plan:
    return _scans.Plan(epochs, batch, rate=RATE, size=SIDE, canvas=SIDE, noise=NOISE)


class Few(_scans.Scans):
    """Batches of the first `KEPT` training scans alone."""

    def __init__(self, plan: _scans.Plan) -> None:
        super().__init__(plan)
        self.ink, self.labels = self.ink[:KEPT], self.labels[:KEPT]


def scores(seed: int, teaching: int, steps: int, whole: bool) -> dict[str, float]:
    """Held-out accuracy of teachers and of students taught in every way.

    Without ``whole`` the wide teacher and the CNN alone: a minute has no room for more steps.
    """
    torch.set_num_threads(1)
    how = _plan(1)
    judge, scans = _scans.judge(how), Few(how)
    widths = WIDTHS if whole else {"wide": WIDTHS["wide"]}
    teachers = {n: teacher(w, seed, teaching) for n, w in widths.items()}
    found = {f"{n} teacher": float(judge(t).mean()) for n, t in teachers.items()}

    def taught(kind: str, way: str, by: str) -> float:
        torch.manual_seed(seed)
        model = student(kind).eval()
        data = TrainingData(scans, F.cross_entropy, teachers[by])
        workload = Workload(model, (judge.images[:8],), training=data)
        settings: dict[str, Any] = {"steps": steps, "lr": RATE, "temperature": 1.0, "seed": seed}
        if way == "ScaleKD":
            technique: Recover = CrossDistillation(**settings)
        else:
            technique = Recover(**settings, task=1.0 if way == "labels" else 0.5)
        change = technique.apply(workload, technique.sites(workload, capture(workload)))
        return float(judge(change.workload.model).mean())

    for kind in STUDENTS if whole else STUDENTS[:1]:
        for way in WAYS:
            found[f"{kind}, {way}"] = taught(kind, way, "wide")
    if whole:
        found["CNN, ScaleKD, narrow"] = taught("CNN", "ScaleKD", "narrow")
    return found


def exact() -> dict[str, float]:
    """Errors of the transform's inverse and of the view under an offset per channel."""
    x = torch.randn(4, 8, 7, 7, generator=torch.Generator().manual_seed(0))
    rest = without_mean(x)
    return {
        "inverse": float((idct(dct(x)) - x).abs().max()),
        "offset": float((without_mean(x + 3.0) - rest).abs().max()),
    }


class ScaleKDCard(Card):
    """A small transformer teaches a CNN and a mixer that have half of its scans."""

    key = "scalekd"
    claim = (
        "students of other architectures learn more from a large vision transformer through its "
        "features and its own last stage than through its logits, and more from a larger one"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "error": 1e-5,
        "scalekd_minus_logits": 0.0,
        "logits_minus_labels": 0.0,
        "wide_minus_narrow": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; every student takes the same steps from the same weights.

        The quick scale has the CNN and the wide teacher alone.
        """
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(4 if quick else 10))
        settings = (16, 240, False) if quick else (60, 900, True)
        by = Paired.run(scores, seeds, *settings, progress=progress)
        checks = [Check(f"error, {n}", e, "<=", t["error"]) for n, e in exact().items()]
        for kind in STUDENTS[:1] if quick else STUDENTS:
            checks += [
                _task.mean_check(
                    f"accuracy of the {kind}, {a} minus {b}",
                    by.less(f"{kind}, {a}", f"{kind}, {b}"),
                    ">=",
                    t[f"{a.lower()}_minus_{b}"],
                )
                for a, b in (("ScaleKD", "logits"), ("logits", "labels"))
            ]
        if not quick:
            checks.append(
                _task.mean_check(
                    "accuracy of the CNN, wide teacher minus narrow",
                    by.less("CNN, ScaleKD", "CNN, ScaleKD, narrow"),
                    ">=",
                    t["wide_minus_narrow"],
                )
            )
        figures: dict[str, Figure] = by.figures("accuracy")
        rows = by.rows("network", "accuracy")
        return Experiment(figures, checks, seeds, {"accuracy": rows})
