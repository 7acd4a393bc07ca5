"""N2N learning: REINFORCE over students of a teacher, each trained briefly and rewarded.

Ashok, Rhinehart, Beainy and Kitani 2018, arXiv:1709.06030; section 3.3 and the authors' settings.
The reward is ``accuracy / teacher's * C (2 - C)`` with ``C = 1 - cost / teacher's cost``; cost is
any positive figure of a network: its parameters, or its measured time where a budget names
latency. Five students per step; the step's mean reward less the mean of earlier ones drives all.

Deviations: students keep the teacher's weights where the paper draws new ones, and are trained
towards its outputs by `techniques.recover` (AdamW); layers are shrunk in their channels alone,
not in kernel, stride and padding; a budget enters as the cost, not as an annealed constraint.
Limits: one policy step costs five short trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from paredown.errors import InputError, ParedownError
from paredown.quality import judge
from paredown.search.n2n.policies import Removal, Shrinkage, Uniform
from paredown.techniques.recover import Plan, fresh_norms, train
from paredown.workload import Workload, share

Cost = Callable[[Workload], float]
Policy = Removal | Shrinkage | Uniform

INVALID = -1.0
"""Reward of a network that does not run, or costs no less than the stage's."""
ROLLOUTS = 5
NORM_BATCHES = 4
"""Batches for fresh batch-norm statistics of a student."""


class Stage(Protocol):
    """Actions on one network: how many options, what a policy reads, what comes of actions."""

    workload: Workload
    options: int
    features: Tensor

    def student(self, actions: Sequence[int]) -> Workload:
        """The network that actions make; raises ``ParedownError`` where there is none."""
        ...


@dataclass
class Found:
    """A student: its actions, reward, score, cost relative to the teacher's; why it is invalid."""

    actions: tuple[int, ...]
    reward: float
    score: float
    cost: float
    why: str = ""


@dataclass
class Search:
    """What one stage's search saw, in order, and the best of it."""

    seen: list[Found] = field(default_factory=list)
    trained: int = 0
    """Students trained; the others came from the cache."""

    @property
    def best(self) -> Found:
        """The student of the highest reward, the earliest of equals."""
        return max(self.seen, key=lambda f: f.reward)

    def calls_to(self, reward: float) -> int | None:
        """Students seen until one had at least this reward, None where none had."""
        return next((i + 1 for i, f in enumerate(self.seen) if f.reward >= reward), None)


def parameters(workload: Workload) -> float:
    """Parameters, tied ones once."""
    return float(sum(p.numel() for p in workload.model.parameters()))


def latency(teacher: Workload, *, seconds: float = 0.2) -> Cost:
    """A cost: measured eager time of a student in turns with the teacher, over the teacher's.

    In this process and thread setting, for ``seconds`` each: good enough to rank, not to report.
    """
    from paredown.measure.compare import interleave

    def ratio(workload: Workload) -> float:
        with torch.inference_mode():
            done = interleave(
                [("teacher", teacher.call), ("student", workload.call)], seconds=seconds
            )
        return done.timings[1].ratio.known()

    return ratio


def reward(score: float, teacher: float, cost: float, whole: float) -> float:
    """``score / teacher * C (2 - C)`` with ``C = 1 - cost / whole``; C = 0 gives 0."""
    c = 1 - cost / whole
    return score / teacher * c * (2 - c)


class Compression:
    """The environment: makes, trains and rewards students of one teacher; remembers them.

    The workload needs training data and ``evaluate``; ``plan`` is each student's training.
    """

    def __init__(self, teacher: Workload, plan: Plan, *, cost: Cost = parameters) -> None:
        if teacher.training is None or teacher.evaluate is None:
            raise InputError("n2n needs training data and `evaluate`")
        self.teacher, self.plan, self.cost = teacher, plan, cost
        self.score = self._judge(teacher.model)
        if self.score <= 0:
            raise InputError(f"n2n needs a teacher with a positive score, got {self.score}")
        self.whole = cost(teacher)

    def _judge(self, model: nn.Module) -> float:
        assert self.teacher.evaluate is not None
        value = judge(self.teacher.evaluate, model)
        return float(value) if isinstance(value, (int, float)) else float(value.mean())

    def trained(self, student: Workload, plan: Plan | None = None) -> tuple[Workload, float]:
        """An own copy trained towards the teacher's outputs, and its score."""
        data = self.teacher.training
        assert data is not None
        own = student.own()
        fresh_norms(own.model, data, NORM_BATCHES)
        train(own.model, share(self.teacher.model), data, plan or self.plan)
        return own, self._judge(own.model)

    def search(self, stage: Stage, policy: Policy, rollouts: int, *, seed: int = 0) -> Search:
        """Draw ``rollouts`` students of a stage in steps of five; the policy learns in place."""
        found, known = Search(), dict[tuple[int, ...], Found]()
        start = self.cost(stage.workload)
        weights = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, policy.rate) if weights else None
        baseline: list[float] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            while len(found.seen) < rollouts:
                logs: list[Tensor] = []
                rewards: list[float] = []
                for _ in range(min(ROLLOUTS, rollouts - len(found.seen))):
                    actions, log = policy(stage.features)
                    key = tuple(int(a) for a in actions)
                    if key not in known:
                        known[key] = self._reward(stage, key, start)
                        found.trained += known[key].reward != INVALID
                    found.seen.append(known[key])
                    logs.append(log)
                    rewards.append(known[key].reward)
                mean = sum(rewards) / len(rewards)
                before = sum(baseline) / (len(baseline) + 1)
                baseline.append(mean)
                if optimizer is not None:
                    loss = -(mean - before) * torch.stack(logs).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        return found

    def _reward(self, stage: Stage, actions: tuple[int, ...], start: float) -> Found:
        try:
            student = stage.student(actions)
            cost = self.cost(student)
        except (ParedownError, RuntimeError) as e:
            return Found(actions, INVALID, 0.0, 1.0, str(e))
        if cost >= start:
            return Found(actions, INVALID, 0.0, cost / self.whole, "costs no less than before")
        _, score = self.trained(student)
        return Found(actions, reward(score, self.score, cost, self.whole), score, cost / self.whole)
