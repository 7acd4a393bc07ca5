"""Claim card of N2N learning: students found by policy gradient (Ashok et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from paredown.figure import Figure
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_and_power
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.search.n2n import (
    Compression,
    Removal,
    RemovalStage,
    Shrinkage,
    ShrinkageStage,
    parameters,
)
from paredown.search.n2n.compression import Search
from paredown.search.n2n.policies import Uniform
from paredown.search.n2n.stages import SHARES
from paredown.techniques.recover import Plan
from paredown.workload import TrainingData, Workload
from paredown.workloads.digits import Accuracy
from paredown.workloads.fit import Phase, fit

SIZES = {"teacher": (16, 16, 16, 32, 32, 32, 48, 48), "small teacher": (12, 12, 24, 24, 24)}
RATE = 4e-3


@dataclass(frozen=True)
class Effort:
    """Epochs of the teachers, students of each stage, steps of each and of the best one."""

    epochs: int
    removal: int
    shrinkage: int
    steps: int
    final: int


def network(name: str) -> nn.Module:
    """A plain CNN with batch norm, two strides, and one linear."""
    layers: list[nn.Module] = []
    before = 1
    for i, width in enumerate(SIZES[name]):
        layers += [
            nn.Conv2d(before, width, 3, 2 if i in (0, 3) else 1, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def trained(name: str, seed: int, effort: Effort) -> tuple[Workload, Accuracy]:
    """A teacher whose search is judged on a third of the held-out scans, and the judge of all."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    how = _scans.Plan(effort.epochs, rate=RATE, noise=0.45)
    scans, judge = _scans.Scans(how), _scans.judge(how)
    model = network(name)
    fit(model, [Phase(scans, how.epochs)], rate=RATE, seed=seed, loss=F.cross_entropy)
    few = Accuracy(judge.images[::3], judge.labels[::3], batch=128)
    data = TrainingData(scans, F.cross_entropy)
    return Workload(model, (judge.images[:2],), evaluate=few, training=data), judge


def scores(seed: int, effort: Effort) -> dict[str, float]:
    """Rewards, accuracy and parameters of what policies and random search find; of transfer too."""
    teacher, judge = trained("teacher", seed, effort)
    plan = Plan(effort.steps, RATE, task=0.0, checks=1, seed=seed)
    final = Plan(effort.final, RATE, task=0.0, checks=1, seed=seed)
    env = Compression(teacher, plan)
    found = {"accuracy, teacher": float(judge(teacher.model).mean())}

    def told(name: str, student: Workload) -> None:
        own, _ = env.trained(student, final)
        found[f"accuracy, {name}"] = float(judge(own.model).mean())
        found[f"times fewer, {name}"] = env.whole / parameters(student)

    first = RemovalStage(teacher)
    smaller: dict[str, ShrinkageStage] = {}
    searches: dict[str, Search] = {}
    for name, policies in (
        ("N2N", (Removal(), Shrinkage(len(SHARES)))),
        ("random", (Uniform(2), Uniform(len(SHARES)))),
    ):
        removed = env.search(first, policies[0], effort.removal, seed=seed).best
        stage = smaller[name] = ShrinkageStage(first.student(removed.actions))
        search = searches[name] = env.search(stage, policies[1], effort.shrinkage, seed=seed)
        found[f"reward, {name}"] = max(search.best.reward, removed.reward)
        told(name, stage.student(search.best.actions))
    # Uniform width scaling to the nearest share of what N2N found.
    whole = ShrinkageStage(teacher)
    wanted = env.whole / found["times fewer, N2N"]
    even = [whole.student([i] * len(whole.features)) for i in range(len(SHARES))]
    told("uniform", min(even, key=lambda w: abs(parameters(w) - wanted)))
    source, _ = trained("small teacher", seed, effort)
    policy = Shrinkage(len(SHARES))
    Compression(source, plan).search(ShrinkageStage(source), policy, effort.shrinkage, seed=seed)
    moved = env.search(smaller["N2N"], policy, effort.shrinkage, seed=seed + 1)
    goal = 0.9 * searches["N2N"].best.reward
    never = effort.shrinkage + 1
    found["students to 90 %, from scratch"] = searches["N2N"].calls_to(goal) or never
    found["students to 90 %, transferred"] = moved.calls_to(goal) or never
    return found


class N2NCard(Card):
    """Plain CNNs on noisy scans: students by two policies, by chance, and by width alone."""

    key = "n2n-learning"
    claim = (
        "policies over layers find students more than ten times smaller at similar accuracy; "
        "policies learned on small teachers speed the search up on larger ones"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "times_fewer": 10.0,
        "drop": 0.01,
        "reward_minus_random": 0.0,
        "transferred_minus_scratch": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Paired by seed; random search trains as many students for as long."""
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(4 if quick else 10))
        effort = Effort(8, 5, 15, 8, 60) if quick else Effort(30, 100, 150, 60, 900)
        by = Paired.run(scores, seeds, effort, progress=progress)
        fewer = mean_and_power(by["times fewer, N2N"])
        sooner = mean_and_power(
            by.less("students to 90 %, transferred", "students to 90 %, from scratch")
        )
        gain = mean_and_power(by.less("reward, N2N", "reward, random"))
        checks = [
            Check("times fewer parameters", fewer[0], ">=", t["times_fewer"], fewer[1], "x"),
            _task.mean_check(
                "drop from the teacher",
                by.less("accuracy, teacher", "accuracy, N2N"),
                "<=",
                t["drop"],
            ),
            Check("reward, N2N minus random", gain[0], ">=", t["reward_minus_random"], gain[1]),
            Check(
                "students to 90 % of the reward, transferred minus from scratch",
                sooner[0],
                "<=",
                t["transferred_minus_scratch"],
                sooner[1],
            ),
        ]
        figures: dict[str, Figure] = {}
        for what in by:
            figures |= by.figures("mean", [what], "x" if what.startswith("times") else "")
        table: list[dict[str, Any]] = by.rows("figure", "value")
        return Experiment(figures, checks, seeds, {"figures": table})
