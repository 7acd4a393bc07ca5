"""Agents that search an environment within a budget of simulator calls; each lists its settings.

ArchGym (Krishnan et al. 2023, arXiv:2306.08888), section 4: a random walker, a genetic algorithm,
ant colony optimisation, Bayesian optimisation and reinforcement learning, each swept over a grid of
hyper-parameters. Numbers of the grids follow the authors' code where it could be read.

Deviations: reinforcement learning is REINFORCE with a baseline over independent knobs (the paper:
an actor-critic); the Gaussian process picks a few designs per fit, from a random sample, by
expected improvement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from paredown.search.gym.environment import Action, Environment

Rng = np.random.Generator


class Agent(ABC):
    """One way to search; ``settings`` come from ``grid``."""

    name: ClassVar[str]
    grid: ClassVar[Mapping[str, tuple[Any, ...]]]

    def __init__(self, **settings: Any) -> None:
        self.settings = {k: settings.get(k, v[len(v) // 2]) for k, v in self.grid.items()}

    @classmethod
    def drawn(cls, rng: Rng) -> Agent:
        """The agent with settings drawn from its grid."""
        return cls(**{k: v[int(rng.integers(len(v)))] for k, v in cls.grid.items()})

    def run(self, env: Environment, budget: int, rng: Rng) -> float:
        """Search with exactly ``budget`` calls; the best reward found."""
        self.search(env, env.calls + budget, rng)
        return env.best()

    @abstractmethod
    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """Call ``env.step`` until it has ``until`` calls."""


class RandomWalker(Agent):
    """Designs drawn alike, or a step of one knob from the last one."""

    name = "random"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"restart": (0.1, 0.5, 1.0)}

    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """Walk on, or start anew with the chance ``restart``."""
        at = env.random(rng)
        while env.calls < until:
            env.step(at)
            fresh = rng.random() < self.settings["restart"]
            at = env.random(rng) if fresh else mutated(env, at, 1 / len(at), rng)


class Genetic(Agent):
    """Tournament selection, uniform crossover, mutation knob by knob, the best one kept."""

    name = "genetic"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "population": (4, 8, 16, 32, 64),
        "mutation": (0.001, 0.01, 0.05, 0.2),
        "crossover": (0.5, 0.9),
    }

    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """Generation by generation."""
        size = self.settings["population"]
        people: list[tuple[float, Action]] = []
        while env.calls < until and len(people) < size:
            at = env.random(rng)
            people.append((env.step(at)[1], at))
        while env.calls < until:
            children = [max(people)]
            while len(children) < size and env.calls < until:
                a, b = self._parent(people, rng), self._parent(people, rng)
                child = a
                if rng.random() < self.settings["crossover"]:
                    child = tuple(x if rng.random() < 0.5 else y for x, y in zip(a, b, strict=True))
                child = mutated(env, child, self.settings["mutation"], rng)
                children.append((env.step(child)[1], child))
            people = children

    def _parent(self, people: list[tuple[float, Action]], rng: Rng) -> Action:
        pair = rng.integers(len(people), size=2)
        return max(people[int(i)] for i in pair)[1]


class AntColony(Agent):
    """Pheromone per value of each knob, strengthened by reward, evaporating."""

    name = "ants"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "ants": (2, 8, 16, 32, 64),
        "evaporation": (0.1, 0.25, 0.5, 1.0),
        "greediness": (0.0, 0.25, 0.5, 0.75),
    }

    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """Round by round; ``greediness`` is the chance that a knob takes its strongest value."""
        trails = [np.ones(len(k.values)) for k in env.knobs]
        while env.calls < until:
            found: list[tuple[float, Action]] = []
            for _ in range(self.settings["ants"]):
                if env.calls >= until:
                    break
                at = tuple(self._value(t, rng) for t in trails)
                found.append((env.step(at)[1], at))
            gained, at = max(found)
            top = max(env.best(), 1e-30)
            for trail, value in zip(trails, at, strict=True):
                trail *= 1 - self.settings["evaporation"] * 0.5
                trail[value] += gained / top
                np.clip(trail, 1e-3, None, out=trail)

    def _value(self, trail: np.ndarray, rng: Rng) -> int:
        if rng.random() < self.settings["greediness"]:
            return int(trail.argmax())
        return int(rng.choice(len(trail), p=trail / trail.sum()))


class Bayesian(Agent):
    """A Gaussian process on the logarithm of the reward, expected improvement over a sample."""

    name = "bayesian"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "first": (8, 16, 32),
        "length": (0.3, 0.6, 1.2),
        "noise": (1e-4, 1e-2),
        "batch": (8, 16),
    }

    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """Draw a few, then fit and take the most promising of a sample in batches."""
        seen: list[Action] = []
        gains: list[float] = []

        def ask(at: Action) -> None:
            seen.append(at)
            gains.append(float(np.log(env.step(at)[1])))

        while env.calls < until and len(seen) < self.settings["first"]:
            ask(env.random(rng))
        while env.calls < until:
            best = seen[int(np.argmax(gains))]
            sample = [env.random(rng) for _ in range(192)]
            sample += [mutated(env, best, 0.3, rng) for _ in range(64)]
            sample = [s for s in dict.fromkeys(sample) if s not in set(seen)] or [env.random(rng)]
            order = np.argsort(-self._improvement(env, seen, gains, sample))
            for i in order[: self.settings["batch"]]:
                if env.calls < until:
                    ask(sample[int(i)])

    def _improvement(
        self, env: Environment, seen: list[Action], gains: list[float], sample: list[Action]
    ) -> np.ndarray:
        from scipy.special import ndtr

        x, z = unit(env, seen), unit(env, sample)
        y = np.array(gains)
        mean, spread = y.mean(), y.std() or 1.0
        y = (y - mean) / spread

        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            square = ((a[:, None] - b[None]) ** 2).sum(-1)
            return np.exp(-square / (2 * self.settings["length"] ** 2))

        noise = self.settings["noise"] * np.eye(len(x))
        factor = np.linalg.cholesky(kernel(x, x) + noise + 1e-8 * np.eye(len(x)))
        cross = np.linalg.solve(factor, kernel(x, z))
        found = cross.T @ np.linalg.solve(factor, y)
        sigma = np.sqrt(np.clip(1 - (cross**2).sum(0), 1e-12, None))
        over = (found - y.max()) / sigma
        return sigma * (over * ndtr(over) + np.exp(-(over**2) / 2) / np.sqrt(2 * np.pi))


class Reinforce(Agent):
    """A softmax per knob, moved along the log-reward above its running mean."""

    name = "reinforce"
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "rate": (0.02, 0.1, 0.3, 1.0),
        "entropy": (0.0, 0.01, 0.1),
        "decay": (0.8, 0.95),
    }

    def search(self, env: Environment, until: int, rng: Rng) -> None:
        """One design at a time."""
        logits = [np.zeros(len(k.values)) for k in env.knobs]
        mean: float | None = None
        while env.calls < until:
            shares = [np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in logits]
            at = tuple(int(rng.choice(len(p), p=p)) for p in shares)
            gained = float(np.log(env.step(at)[1]))
            mean = gained if mean is None else mean
            for logit, share, value in zip(logits, shares, at, strict=True):
                step = -share * (gained - mean)
                step[value] += gained - mean
                calm = share * (np.log(share + 1e-12) - (share * np.log(share + 1e-12)).sum())
                logit += self.settings["rate"] * (step - self.settings["entropy"] * calm)
            mean = self.settings["decay"] * mean + (1 - self.settings["decay"]) * gained


AGENTS: tuple[type[Agent], ...] = (RandomWalker, Genetic, AntColony, Bayesian, Reinforce)


def mutated(env: Environment, at: Action, chance: float, rng: Rng) -> Action:
    """Each knob drawn anew with a chance."""
    return tuple(
        int(rng.integers(len(k.values))) if rng.random() < chance else a
        for a, k in zip(at, env.knobs, strict=True)
    )


def unit(env: Environment, actions: list[Action]) -> np.ndarray:
    """Actions as points of the unit cube (designs, knobs)."""
    sizes = np.array([max(1, len(k.values) - 1) for k in env.knobs])
    return np.array(actions, dtype=float) / sizes
