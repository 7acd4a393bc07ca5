"""Networks for several tasks and a chip of unlike accelerators, searched together.

NASAIC (Yang et al. 2020, arXiv:2002.04116), section IV: a controller samples a network per task and
per sub-accelerator a template with shares of elements and bandwidth; the reward is the mean
accuracy less ``rho`` times how far latency, energy and area exceed their limits; for each sample of
networks several chips are tried, and networks are trained only if one of them keeps the limits.

Deviations: the controller is REINFORCE over independent softmaxes, one per knob (the paper: a
recurrent network); what is asked for beyond the chip's elements or bandwidth is cut off, and the
paper's values of ``rho`` and of the number of chips per sample could not be looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from paredown.cost.heterogeneous import SubAccelerator, Template, area, assigned
from paredown.cost.systolic import Layer
from paredown.errors import InputError
from paredown.search.gym.environment import Action, Knob

METRICS: tuple[str, ...] = ("latency", "energy", "area")
EIGHTHS = tuple(range(1, 9))


@dataclass(frozen=True)
class Candidate:
    """One network of a task: what it is called, and its layers in order."""

    name: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Chip:
    """What all sub-accelerators share, how many there are, and which templates each may be."""

    elements: int
    bytes_s: float
    subs: int = 2
    templates: tuple[Template, ...] = ("shi", "dla", "rs")

    def divided(self, values: Mapping[str, Any]) -> list[SubAccelerator]:
        """Sub-accelerators by their asked shares, in order; one that is left nothing is absent."""
        elements, bytes_s = self.elements, self.bytes_s
        found: list[SubAccelerator] = []
        for i in range(self.subs):
            more = min(elements, self.elements * values[f"elements {i}"] // 8)
            faster = min(bytes_s, self.bytes_s * values[f"bandwidth {i}"] / 8)
            if more < 1 or faster <= 0:
                continue
            found.append(SubAccelerator(values[f"template {i}"], more, faster))
            elements, bytes_s = elements - more, bytes_s - faster
        return found


@dataclass
class Joint:
    """The joint space. ``accuracy(task, network)`` is asked only of networks that may fit.

    ``specs`` are the limits and ``bounds`` the values of the largest networks, by metric (s, MACs,
    MAC units).
    """

    tasks: Mapping[str, Sequence[Candidate]]
    chip: Chip
    specs: Mapping[str, float]
    bounds: Mapping[str, float]
    accuracy: Callable[[str, str], float]
    rho: float = 10.0
    known: dict[Action, dict[str, float]] = field(default_factory=dict)
    trained: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for m in METRICS:
            if not 0 < self.specs[m] < self.bounds[m]:
                raise InputError(f"{m}: a limit lies above 0 and below its bound")

    @cached_property
    def knobs(self) -> list[Knob]:
        """A network per task, then template and shares of each sub-accelerator."""
        found = [Knob(t, tuple(range(len(c)))) for t, c in self.tasks.items()]
        for i in range(self.chip.subs):
            found += [
                Knob(f"template {i}", self.chip.templates),
                Knob(f"elements {i}", EIGHTHS),
                Knob(f"bandwidth {i}", EIGHTHS),
            ]
        return found

    def networks(self, action: Action) -> list[Candidate]:
        """The networks of a design, by task."""
        return [c[a] for c, a in zip(self.tasks.values(), action, strict=False)]

    def subs(self, action: Action) -> list[SubAccelerator]:
        """The sub-accelerators of a design."""
        return self.chip.divided(
            {k.name: k.values[a] for k, a in zip(self.knobs, action, strict=True)}
        )

    def cost(self, action: Action) -> dict[str, float]:
        """Latency, energy and area of a design, mapped and scheduled by the heuristic."""
        if action not in self.known:
            chains, subs = [n.layers for n in self.networks(action)], self.subs(action)
            found = assigned(chains, subs, self.specs["latency"])
            self.known[action] = {
                "latency": found.seconds, "energy": found.energy, "area": area(subs)
            }  # fmt: skip
        return self.known[action]

    def penalty(self, seen: Mapping[str, float]) -> float:
        """How far the limits are exceeded, as shares of what lies between limit and bound."""
        return sum(
            max(0.0, seen[m] - self.specs[m]) / (self.bounds[m] - self.specs[m]) for m in METRICS
        )

    def score(self, action: Action) -> float:
        """Mean accuracy of the networks; they count as trained from now on."""
        tasks = list(self.tasks)
        found = [(t, n.name) for t, n in zip(tasks, self.networks(action), strict=True)]
        self.trained.update(found)
        return float(np.mean([self.accuracy(t, n) for t, n in found]))


@dataclass(frozen=True)
class Design:
    """One design: mean accuracy (None where it was not worth training), cost, penalty."""

    action: Action
    accuracy: float | None
    seen: Mapping[str, float]
    penalty: float

    @property
    def feasible(self) -> bool:
        """Whether every limit is kept."""
        return self.penalty == 0


class Controller:
    """A softmax per knob, moved along the reward above its running mean."""

    def __init__(self, knobs: Sequence[Knob], rng: np.random.Generator, rate: float) -> None:
        self.logits = [np.zeros(len(k.values)) for k in knobs]
        self.rng, self.rate = rng, rate
        self._mean: dict[int, float] = {}

    def sample(self, fixed: Mapping[int, int]) -> Action:
        """A design; knobs in ``fixed`` keep their values."""
        return tuple(
            fixed[i] if i in fixed else int(self.rng.choice(len(p), p=p))
            for i, p in enumerate(map(_softmax, self.logits))
        )

    def learn(self, action: Action, reward: float, knobs: Sequence[int]) -> None:
        """Move these knobs' shares; rewards of the same set of knobs share a running mean."""
        key = hash(tuple(knobs))
        mean = self._mean.setdefault(key, reward)
        for i in knobs:
            step = -_softmax(self.logits[i]) * (reward - mean)
            step[action[i]] += reward - mean
            self.logits[i] += self.rate * step
        self._mean[key] = 0.9 * mean + 0.1 * reward


def explore(
    joint: Joint,
    *,
    episodes: int,
    chips: int = 5,
    seed: int = 0,
    rate: float = 0.1,
    fixed: Mapping[int, int] | None = None,
) -> list[Design]:
    """Co-exploration: every design in order. ``fixed`` knobs (by place) are not searched.

    An episode samples networks and a chip, then ``chips`` more chips for these networks with a
    reward of the penalty alone; networks are trained if one of them keeps the limits.
    """
    fixed = dict(fixed or {})
    controller = Controller(joint.knobs, np.random.default_rng(seed), rate)
    every = [i for i in range(len(joint.knobs)) if i not in fixed]
    hardware = [i for i in every if i >= len(joint.tasks)]
    found: list[Design] = []
    for _ in range(episodes):
        first = controller.sample(fixed)
        held = {**fixed, **{i: first[i] for i in range(len(joint.tasks))}}
        tried = [first, *(controller.sample(held) for _ in range(chips if hardware else 0))]
        seen = [joint.cost(a) for a in tried]
        lacks = [joint.penalty(s) for s in seen]
        for action, lack in zip(tried[1:], lacks[1:], strict=True):
            controller.learn(action, -joint.rho * lack, hardware)
        best = int(np.argmin(lacks))
        score = joint.score(tried[best]) if lacks[best] == 0 else None
        controller.learn(tried[best], (score or 0.0) - joint.rho * lacks[best], every)
        found += [
            Design(a, score if lack == 0 else None, s, lack)
            for a, s, lack in zip(tried, seen, lacks, strict=True)
        ]
    return found


def best(designs: Sequence[Design]) -> Design:
    """The most accurate design within the limits, of equal ones the least energy; else the one
    nearest to them.
    """
    kept = [d for d in designs if d.feasible and d.accuracy is not None]
    if kept:
        return max(kept, key=lambda d: (d.accuracy or 0.0, -d.seen["energy"]))
    return min(designs, key=lambda d: d.penalty)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()
