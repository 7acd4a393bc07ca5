"""Claim card of CBNet: hard-to-easy conversion against early exits (arXiv:2403.07036)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.cost.over_inputs import figures_over_inputs
from paredown.device.files import load
from paredown.errors import InputError
from paredown.figure import Figure, unavailable
from paredown.graph.capture import capture
from paredown.measure.child import Jobs, Limits
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, half_width, mean_figure
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.technique import Technique
from paredown.techniques.adaptive.conversion import HardToEasy
from paredown.techniques.adaptive.early_exit import EarlyExit
from paredown.workload import TrainingData, Workload
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

SIDE = 16
EASY = _scans.Plan(1, 24, size=SIDE, canvas=SIDE, noise=0.2)
HARD = _scans.Plan(1, 24, size=14, canvas=SIDE, noise=0.6, moved=True)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of hard inputs that the networks are timed at."""
TIMED = 120
WAYS = ("early exit", "whole", "converted")
FRONT = 0.05
"""Share of the work before the exit: after the first of three convolutions."""


def lenet() -> nn.Module:
    """Three convolutions and two linears; the first convolution is the light network's trunk."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(16, 48, 5, padding=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(16 * 96, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mixed(part: str, hard: float, seed: int, copies: int = 1) -> tuple[Tensor, Tensor]:
    """Scans of a part, this share of them hard: moved about, smaller, under more noise."""
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for _ in range(copies):
        (easy, y), (small, _) = digits.split(part, SIDE), digits.split(part, HARD.size)
        which = torch.rand(len(y), generator=generator) < hard
        a, b = _scans.placed(easy, EASY, generator), _scans.placed(small, HARD, generator)
        images.append(torch.where(which[:, None, None, None], b, a))
        labels.append(y)
    return torch.cat(images), torch.cat(labels)


class Mixed:
    """Training batches, half of the scans hard, drawn anew each epoch."""

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """One epoch in batches of 24."""
        images, labels = mixed("train", 0.5, int(torch.randint(2**31 - 1, ())))
        order = torch.randperm(len(labels))
        for at in order.split(24):
            yield (images[at],), labels[at]


@cache
def _judge(hard: float) -> digits.Accuracy:
    return digits.Accuracy(*mixed("held-out", hard, 7), batch=128)


def networks(seed: int, scale: Scale) -> dict[str, Workload]:
    """A trained network, with an early exit, and converted; inputs half of them hard."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, epochs = lenet(), {"quick": 6, "full": 40}[scale]
    fit(model, [Phase(Mixed(), epochs)], rate=3e-3, seed=seed, loss=F.cross_entropy)
    images, labels = mixed("validation", 0.5, 11, copies=4)
    whole = Workload(
        model.eval(),
        (images[:1],),
        calibration=list(images.split(64)),
        evaluate=digits.Accuracy(images, labels, batch=128),
        training=TrainingData(Mixed(), F.cross_entropy),
        scale=1.0,
        population=list(mixed("held-out", 0.5, 5)[0][:TIMED].split(1)),
    )
    steps = {"quick": 200, "full": 1500}[scale]
    ways: dict[str, Technique] = {
        "early exit": EarlyExit(exits=1, lose=0.005, steps=steps, seed=seed),
        "converted": HardToEasy(FRONT, hidden=128, code=32, steps=6 * steps, seed=seed),
    }
    found = {"whole": whole}
    graph = capture(whole)
    for name, technique in ways.items():
        sites = technique.sites(whole, graph).only(["0"])
        found[name] = technique.apply(whole, sites).workload
    return found


def scores(seed: int, scale: Scale) -> dict[str, float]:
    """Accuracy of the three networks on easy, mixed and hard scans, and what is counted of them."""
    found: dict[str, float] = {}
    for name, w in networks(seed, scale).items():
        for hard in SHARES:
            found[f"{name}, {hard:.0%} hard"] = float(_judge(hard)(w.model).mean())
        priced = figures_over_inputs(w, load("xeon-8480"))
        macs = priced["macs"]
        found[f"MACs, {name}"] = macs.known()
        found[f"predicted ms, {name}"] = 1e3 * priced["latency"].known()
        quantiles = macs.quantiles
        if quantiles is None:
            raise InputError(f"{macs.n} inputs are too few for quantiles")
        found[f"span of MACs, {name}"] = quantiles["p99"] - quantiles["p50"]
    return found


def timed(scale: Scale, seconds: float) -> dict[float, dict[str, tuple[Figure, Figure]]]:
    """Latency and its ratio to the early exit's by share of hard inputs (in a child)."""
    from paredown import runtime
    from paredown.measure.compare import Timed
    from paredown.measure.over_inputs import passes

    built = networks(100, scale)
    backend = runtime.backend("eager")
    runs = {name: Timed(backend.lower(w, threads=1), w) for name, w in built.items()}
    found: dict[float, dict[str, tuple[Figure, Figure]]] = {}
    for hard in SHARES:
        images, _ = mixed("held-out", hard, 5)
        calls: Sequence[Any] = [((x,), {}) for x in images[:TIMED].split(1)]
        c = passes([(n, runs[n]) for n in WAYS], calls, seconds=seconds)
        found[hard] = {n: (c[n].latency, c[n].ratio) for n in WAYS}
        found[hard]["a/a"] = (c["early exit"].latency, c.a_a)
    return found


class CBNetCard(Card):
    """A LeNet on scans, easy and hard: whole, with an early exit, and converted."""

    key = "cbnet"
    claim = (
        "behind an autoencoder that turns hard images into easy ones, the front of an early-exit "
        "network answers every input at one cost, faster than the early-exit network and the whole "
        "one, at similar accuracy; energy saved likewise"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "loss_to_whole": 0.01,
        "time_over_early_exit_all_hard": 1.0,
        "time_over_early_exit_half_hard": 1.0,
        "time_over_whole": 1.0,
        "span_of_macs": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Accuracy over seeds on half hard scans; times eager, fp32, batch 1, one thread."""
        progress("training and timing")
        limits = Limits.default(600.0)
        rows = Jobs().run(timed, scale, 0.6 if scale == "quick" else 6.0, limits=limits)
        seeds = list(range(3 if scale == "quick" else 8))
        by = Paired.run(scores, seeds, scale, progress=progress)
        half = "50% hard"
        lost = by.less(f"whole, {half}", f"converted, {half}")
        t = self.thresholds

        def time(hard: float, over: str, threshold: float) -> Check:
            return _over(
                f"time, converted over {over}, {hard:.0%} hard", rows[hard], over, threshold
            )

        checks = [
            _task.mean_check(f"accuracy lost to the whole, {half}", lost, "<=", t["loss_to_whole"]),
            time(1.0, "early exit", t["time_over_early_exit_all_hard"]),
            time(0.5, "early exit", t["time_over_early_exit_half_hard"]),
            time(0.5, "whole", t["time_over_whole"]),
            Check(
                "MACs, converted, p99 minus p50 over inputs",
                max(by["span of MACs, converted"]),
                "<=",
                t["span_of_macs"],
            ),
        ]
        figures: dict[str, Figure] = {
            f"latency, {name}, {hard:.0%} hard": row[name][0]
            for hard, row in rows.items()
            for name in WAYS
        }
        figures["a/a ratio"] = rows[0.5]["a/a"][1]
        figures["energy"] = unavailable("J", "not counted on every machine: time stands for it")
        figures |= {name: mean_figure(by[name], "") for name in by}
        table = [
            {
                "hard": f"{hard:.0%}",
                **{f"{n}, ms": 1e3 * row[n][0].known() for n in WAYS},
                **{f"{n}, accuracy": by.mean(f"{n}, {hard:.0%} hard") for n in WAYS},
            }
            for hard, row in rows.items()
        ]
        return Experiment(figures, checks, seeds, {"hard inputs": table})


def _over(name: str, row: dict[str, tuple[Figure, Figure]], over: str, threshold: float) -> Check:
    """Time of the converted network over another's; both ratios are to the early exit's."""
    ours, base = row["converted"][1], row[over][1]
    if over == "early exit":
        return Check(name, ours.known(), "<=", threshold, half_width(ours), "x")
    value = ours.known() / base.known()
    power = value * sum(half_width(f) / f.known() for f in (ours, base))
    return Check(name, value, "<=", threshold, power, "x")
