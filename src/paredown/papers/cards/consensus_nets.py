"""Claim card of consensus sub-networks: polarised gates in one training (arXiv:2302.10798)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown import recipe
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_and_power
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import side_by_side
from paredown.techniques.recover import Plan, fresh_norms, train
from paredown.techniques.sparsify.consensus import Consensus
from paredown.techniques.sparsify.structured import StructuredPruning
from paredown.workload import TrainingData, Workload

NOISE = 0.7
SHARES = (0.3, 0.5, 0.7)
"""Of the hidden channels, cut."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a shortcut; the channels between are gated."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, height, width)`` to ``(batch, outputs, ..)``."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """A stem, three residual blocks, a classifier, for 16 pixels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, height, width)`` to logits."""
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def quality(seed: int, epochs: int, over_all: bool) -> dict[str, float]:
    """Held-out accuracy, largest doubt of a gate and training time, all from the same start.

    Beside them what needs no gates: a network of half the channels trained from the start.
    """
    torch.set_num_threads(1)
    how = _scans.Plan(epochs, noise=NOISE)
    judge, data = _scans.judge(how), TrainingData(_scans.Scans(how), F.cross_entropy)
    steps = epochs * (720 // how.batch)
    torch.manual_seed(seed)
    start = Workload(ResNet().eval(), (judge.images[:2],), training=data)
    graph = capture(start)
    dense = start.own()
    clock = time.process_time()
    plan = Plan(steps, how.rate, task=1.0, checks=1, seed=seed)
    train(dense.model, None, data, plan)
    spent = time.process_time() - clock
    found = {"dense": float(judge(dense.model).mean())}
    ways: dict[str, dict[str, Any]] = {f"{s:g}": {"share": s} for s in SHARES}
    ways["0.5 without polarisation"] = {"share": 0.5, "polarise": 0.0}
    if over_all:
        ways["0.5 over all"] = {"share": 0.5, "scope": "global"}
    for name, knobs in ways.items():
        way = Consensus(steps=steps, lr=how.rate, task=1.0, seed=seed, **knobs)
        sites = way.sites(start, graph)
        clock = time.process_time()
        change = way.apply(start, sites)
        found[f"training, {name}"] = (time.process_time() - clock) / spent
        found[name] = float(judge(change.workload.model).mean())
        found[f"doubt, {name}"] = change.decisions.values["doubt"]
        found[f"MACs, {name}"] = capture(change.workload).macs / graph.macs
    cutter = StructuredPruning(share=0.5, round_to=1)
    cut = cutter.apply(dense, cutter.sites(dense, capture(dense))).workload
    found["0.5 by magnitude after training"] = float(judge(fresh(cut, data)).mean())
    small = cutter.apply(start, cutter.sites(start, graph)).workload.own().model
    train(small, None, data, plan)
    found["0.5 from the start"] = float(judge(small).mean())
    return found


def fresh(workload: Workload, data: TrainingData) -> nn.Module:
    """The network with new batch-norm statistics, as the gated ones get them."""
    own = workload.own().model
    fresh_norms(own, data)
    return own


@torch.inference_mode(False)
def networks() -> list[tuple[str, Callable[[], Any]]]:
    """A network four times as wide, whole and at half, in eager float32 (in the timing child)."""
    x = torch.randn(8, 1, 16, 16)
    whole = Workload(ResNet(64).eval(), (x,))
    half = recipe.run(recipe.parse_inline("structured-pruning:share=0.5"), whole).workload
    return [("whole", lambda: whole.model(x)), ("half", lambda: half.model(x))]


class ConsensusCard(Card):
    """Small residual networks, hidden channels gated, trained once from the same start."""

    key = "consensus-subnet"
    claim = (
        "polarised gates on channels agree on one static sub-network within a single training, "
        "which removes half of the hidden channels at less than a point of accuracy"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "drop_at_0.5": 0.01,
        "minus_magnitude": 0.0,
        "doubt": 0.01,
        "doubt_over_unpolarised": 0.2,
        "macs_at_0.5": 0.6,
        "training_over_dense": 1.2,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; training in processor time, dense and gated in one child."""
        t, quick = self.thresholds, scale == "quick"
        rows = side_by_side(networks, seconds=2.0 if quick else 20.0, threads=1, limit_s=120)
        seeds = list(range(4 if quick else 10))
        by = Paired.run(quality, seeds, 7 if quick else 40, not quick, progress=progress)
        longer, half = mean_and_power(by["training, 0.5"])
        left = [
            a / b
            for a, b in zip(by["doubt, 0.5"], by["doubt, 0.5 without polarisation"], strict=True)
        ]
        checks = [
            _task.mean_check("drop at 0.5", by.less("dense", "0.5"), "<=", t["drop_at_0.5"]),
            _task.mean_check(
                "accuracy at 0.5 minus magnitude after training",
                by.less("0.5", "0.5 by magnitude after training"),
                ">=",
                t["minus_magnitude"],
            ),
            Check(
                "largest doubt g (1 - g) of any gate at 0.5",
                max(by["doubt, 0.5"]),
                "<=",
                t["doubt"],
            ),
            Check(
                "doubt, polarised over not", max(left), "<=", t["doubt_over_unpolarised"], unit="x"
            ),
            Check("MACs at 0.5 over dense", max(by["MACs, 0.5"]), "<=", t["macs_at_0.5"]),
            Check(
                "training at 0.5 over dense, processor time",
                longer,
                "<=",
                t["training_over_dense"],
                half,
                "x",
            ),
        ]
        scores = [n for n in by if not n.startswith(("training", "doubt", "MACs"))]
        figures: dict[str, Figure] = {
            **by.figures("accuracy", scores),
            **by.figures("largest", [n for n in by if n.startswith("doubt")]),
            **{n: counted(by.mean(n), "1") for n in by if n.startswith("MACs")},
            **by.figures("over dense", [n for n in by if n.startswith("training")], "x"),
            "time of half the channels over whole": rows["half"]["ratio"],
        }
        table = by.rows("network", "accuracy", scores)
        return Experiment(figures, checks, seeds, {"accuracy": table})
