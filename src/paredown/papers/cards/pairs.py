"""Claim card of dual complementary CNNs (Kinnas et al. 2024, arXiv:2412.01039)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import Figure
from paredown.graph.capture import capture
from paredown.measure.child import Jobs, Limits
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    half_width,
    mean_figure,
)
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.runtime.results import difference_hash
from paredown.techniques.adaptive.dual import paired
from paredown.techniques.adaptive.memory import ResultMemory
from paredown.workload import Workload
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

PLAN = _scans.Plan(1, 24, 4e-3, size=12, canvas=16, noise=0.35, moved=True)
TIMED = 100
"""Scans that are timed, and once more each where they are duplicated."""


def large() -> nn.Module:
    """Four convolutions of up to 128 channels: 19 M multiply-accumulates."""
    return _convnet((32, 64, 128, 128), (1, 2, 1, 1), 3)


POOL: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "two of 3x3": ((16, 24), (2, 2), 3),
    "two of 5x5": ((12, 20), (2, 2), 5),
    "three of 3x3": ((12, 16, 24), (2, 1, 2), 3),
    "wide first": ((24, 16), (2, 2), 3),
    "late pooling": ((10, 20), (1, 4), 3),
    "three of 5x5": ((8, 12, 20), (2, 1, 2), 5),
}
"""Channels, strides and kernel of six small networks."""


def _convnet(channels: Sequence[int], strides: Sequence[int], kernel: int) -> nn.Module:
    layers: list[nn.Module] = []
    for (a, b), stride in zip(itertools.pairwise((1, *channels)), strides, strict=True):
        layers += [nn.Conv2d(a, b, kernel, stride, kernel // 2), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels[-1], 10)
    )


@cache
def validation() -> tuple[Tensor, Tensor]:
    """Four copies of each validation scan, placed and made noisy anew."""
    ink, labels = digits.split("validation", PLAN.size)
    generator = torch.Generator().manual_seed(_scans.JUDGE_SEED + 1)
    copies = [_scans.placed(ink, PLAN, generator) for _ in range(4)]
    return torch.cat(copies), labels.repeat(4)


def trained(name: str, seed: int, scale: Scale) -> nn.Module:
    """A network of the pool, or the large one."""
    torch.manual_seed(seed)
    model = large() if name == "large" else _convnet(*POOL[name])
    epochs = {"quick": 6 if name == "large" else 20, "full": 40}[scale]
    batches = [Phase(_scans.Scans(PLAN), epochs)]
    fit(model, batches, rate=PLAN.rate, seed=seed, loss=F.cross_entropy)
    return model.eval()


def networks(seed: int, scale: Scale, *, untrained: bool = False) -> dict[str, nn.Module]:
    """The large network, the pool's pair of the largest complementarity, and that of the two most
    accurate. ``untrained`` leaves the large one as it began: its time is the same.
    """
    torch.set_num_threads(1)
    pool = {name: trained(name, seed, scale) for name in POOL}
    images, labels = validation()
    costs = {n: float(capture(Workload(m, (images[:1],))).macs) for n, m in pool.items()}
    chosen = paired(pool, images, labels, costs)
    judge = digits.Accuracy(images, labels, batch=128)
    best = sorted(pool, key=lambda n: float(judge(pool[n]).mean()))[-2:]
    accurate = paired(pool, images, labels, costs, names=best)
    return {
        "large": large() if untrained else trained("large", seed, scale),
        "pair": chosen.net,
        "two most accurate": accurate.net,
        "better of the pair": max(
            (pool[n] for n in chosen.names), key=lambda m: float(judge(m).mean())
        ),
    }


def duplicated(judge: digits.Accuracy) -> tuple[Tensor, Tensor]:
    """Every judged image twice, shuffled."""
    images, labels = judge.images.repeat(2, 1, 1, 1), judge.labels.repeat(2)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    return images[order], labels[order]


def remembering(model: nn.Module, x: Tensor) -> nn.Module:
    """The model behind a memory of results keyed by difference hashes."""
    workload = Workload(model, (x,))
    technique = ResultMemory(capacity=100_000)
    return technique.apply(workload, technique.sites(workload, capture(workload))).workload.model


def scores(seed: int, scale: Scale) -> dict[str, float]:
    """Held-out accuracy, shares of second runs, and what the memory changes (in a worker)."""
    built, judge = networks(seed, scale), _scans.judge(PLAN)
    found = {name: float(judge(model).mean()) for name, model in built.items()}
    pair: Any = built["pair"]
    found["share of second runs"] = pair.unsure
    twice = digits.Accuracy(*duplicated(judge), batch=1)
    found["pair with memory, duplicates"] = float(
        twice(remembering(built["pair"], judge.images[:1])).mean()
    )
    hashes = difference_hash(judge.images)
    found["hash collisions"] = float(len(hashes) - len(set(hashes)))
    return found


def timed(scale: Scale, seconds: float) -> dict[str, Any]:
    """Mean time per image over the large network's, once and duplicated (in a child)."""
    from paredown import runtime
    from paredown.measure.compare import Timed
    from paredown.measure.over_inputs import passes

    built, judge = networks(100, scale, untrained=True), _scans.judge(PLAN)
    x = judge.images[:1]
    nets = {
        "large": built["large"],
        "pair": built["pair"],
        "pair with memory": remembering(built["pair"], x),
    }
    backend = runtime.backend("eager")
    runs = []
    for name, model in nets.items():
        w = Workload(model, (x,))
        runs.append((name, Timed(backend.lower(w, threads=1), w)))
    images = judge.images[:TIMED]
    order = torch.randperm(2 * TIMED, generator=torch.Generator().manual_seed(3))
    both = images.repeat(2, 1, 1, 1)[order]
    found: dict[str, Any] = {}
    for what, inputs in (("once", images), ("twice", both)):
        c = passes(runs, [((row,), {}) for row in inputs.split(1)], seconds=seconds)
        found |= {f"{name}, {what}": (c[name].latency, c[name].ratio) for name in nets}
        found["a/a"] = (c["large"].latency, c.a_a)
    return found


class DualCard(Card):
    """Six small CNNs on moved, noisy scans; a pair of them, with and without a memory."""

    key = "dual-complementary-cnn"
    claim = (
        "two small networks that err on different inputs, the second run only where the first is "
        "unsure, reach a large one's accuracy at half of its energy or less; with a memory of "
        "results, at 30 % where every input comes twice"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "loss_to_large": 0.01,
        "time_over_large": 0.5,
        "time_over_large_duplicates": 0.3,
        "over_two_most_accurate": 0.0,
        "loss_to_memory": 0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Time on one thread, eager fp32, batch 1, stands for energy; accuracy over seeds."""
        progress("training and timing")
        limits = Limits.default(600.0)
        rows = Jobs().run(timed, scale, 1.0 if scale == "quick" else 10.0, limits=limits)
        seeds = list(range(4 if scale == "quick" else 8))
        by = Paired.run(scores, seeds, scale, progress=progress)
        t = self.thresholds
        once, twice = rows["pair, once"][1], rows["pair with memory, twice"][1]
        checks = [
            _task.mean_check(
                "accuracy, large minus pair", by.less("large", "pair"), "<=", t["loss_to_large"]
            ),
            Check(
                "time, pair over large",
                once.known(),
                "<=",
                t["time_over_large"],
                half_width(once),
                "x",
            ),
            Check(
                "time, pair with memory over large, every scan twice",
                twice.known(),
                "<=",
                t["time_over_large_duplicates"],
                half_width(twice),
                "x",
            ),
            _task.mean_check(
                "accuracy, pair minus the two most accurate",
                by.less("pair", "two most accurate"),
                ">=",
                t["over_two_most_accurate"],
            ),
            _task.mean_check(
                "accuracy lost to the memory's collisions",
                by.less("pair", "pair with memory, duplicates"),
                "<=",
                t["loss_to_memory"],
            ),
        ]
        figures: dict[str, Figure] = {
            f"latency, {n}": f for n, (f, _) in rows.items() if n != "a/a"
        }
        figures |= {f"time over large, {n}": r for n, (_, r) in rows.items() if n != "a/a"}
        figures["a/a ratio"] = rows["a/a"][1]
        figures |= {name: mean_figure(by[name], "") for name in by}
        return Experiment(figures, checks, seeds)
