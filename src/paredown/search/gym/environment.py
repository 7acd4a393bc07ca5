"""An architecture as knobs, a cost model as its simulator, a target as its reward; all is logged.

ArchGym (Krishnan et al. 2023, arXiv:2306.08888), section 3: an agent hands in an action (a value
per knob), the environment simulates and returns an observation (latency, energy, area ...) and a
reward, ``target / |target - observed|``, multiplied over the metrics of a joint target. Budgets
are counted in calls of the simulator.

Deviation: the reward of one metric is at most ``CAP`` (an exact hit), and what is below a target by
less than a hundredth counts as a hit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from paredown.cost.reuse import summary
from paredown.cost.systolic import Layer
from paredown.device.device import Array, Device
from paredown.errors import InputError

CAP = 100.0

Action = tuple[int, ...]
"""Per knob the position of its value."""

Simulator = Callable[[Mapping[str, Any]], dict[str, float]]


@dataclass(frozen=True)
class Knob:
    """One parameter of an architecture and the values it may take, smallest first."""

    name: str
    values: tuple[Any, ...]


@dataclass
class Environment:
    """Knobs, a simulator of them, and targets by metric. ``log`` holds every call in order.

    A simulator is taken to be deterministic: an action asked for again is not simulated again, but
    counts as a call.
    """

    knobs: Sequence[Knob]
    simulator: Simulator
    targets: Mapping[str, float]
    log: list[tuple[Action, dict[str, float], float]] = field(default_factory=list)
    known: dict[Action, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.knobs or not all(k.values for k in self.knobs):
            raise InputError("an environment has knobs, and each knob has values")
        if not self.targets or not all(t > 0 for t in self.targets.values()):
            raise InputError("an environment has targets, all above 0")

    @property
    def points(self) -> int:
        """Designs in all."""
        return prod(len(k.values) for k in self.knobs)

    @property
    def calls(self) -> int:
        """Simulator calls so far."""
        return len(self.log)

    def fresh(self) -> Environment:
        """The same environment with an empty log."""
        return Environment(self.knobs, self.simulator, self.targets, known=self.known)

    def step(self, action: Sequence[int]) -> tuple[dict[str, float], float]:
        """The observation and reward of one design."""
        at = tuple(int(a) for a in action)
        bad = len(at) != len(self.knobs) or any(
            not 0 <= a < len(k.values) for a, k in zip(at, self.knobs, strict=False)
        )
        if bad:
            raise InputError(
                f"an action picks a value of each of {len(self.knobs)} knobs, got {at}"
            )
        if at not in self.known:
            self.known[at] = self.simulator(self.values(at))
        seen = self.known[at]
        gained = self.reward(seen)
        self.log.append((at, seen, gained))
        return seen, gained

    def values(self, action: Action) -> dict[str, Any]:
        """The knobs' values of an action."""
        return {k.name: k.values[a] for k, a in zip(self.knobs, action, strict=True)}

    def reward(self, seen: Mapping[str, float]) -> float:
        """``target / |target - observed|`` over all targets, multiplied."""
        total = 1.0
        for name, target in self.targets.items():
            miss = abs(target - seen[name]) / target
            total *= CAP if miss <= 1 / CAP else 1 / miss
        return total

    def best(self) -> float:
        """The highest reward so far."""
        return max((r for _, _, r in self.log), default=0.0)

    def random(self, rng: np.random.Generator) -> Action:
        """A design drawn alike from all."""
        return tuple(int(rng.integers(len(k.values))) for k in self.knobs)


ARRAY = (
    Knob("rows", (8, 16, 32, 64, 128)),
    Knob("columns", (8, 16, 32, 64, 128)),
    Knob("dataflow", ("weight", "output", "row")),
    Knob("buffer_kib", (32, 64, 128, 256, 512, 1024, 2048)),
    Knob("bandwidth_gb_s", (2, 4, 8, 16, 32, 64)),
    Knob("clock_mhz", (200, 400, 700, 1000)),
)
"""A systolic accelerator: 12,600 designs."""

BYTE_AREA = 0.25
"""Area of a byte of buffer, in multiply-accumulate units of 16 bits (assumed)."""


def array_environment(
    layers: Sequence[Layer], base: Device, targets: Mapping[str, float]
) -> Environment:
    """Arrays for a network's layers (`cost.systolic`): latency (s), energy and area (MAC units)."""

    def simulate(knobs: Mapping[str, Any]) -> dict[str, float]:
        where = designed(base, knobs)
        found = summary(layers, where)
        area = knobs["rows"] * knobs["columns"] + BYTE_AREA * knobs["buffer_kib"] * 1024
        return {"latency": found.seconds, "energy": found.energy, "area": area}

    return Environment(ARRAY, simulate, targets)


def designed(base: Device, knobs: Mapping[str, Any]) -> Device:
    """A systolic device with the array, buffer, bandwidth and clock of these knobs."""
    clock = knobs["clock_mhz"] * 1e6
    array = Array(rows=knobs["rows"], columns=knobs["columns"], clock_hz=clock,
                  dataflow=knobs["dataflow"])  # fmt: skip
    near = base.levels[0].model_copy(update={"capacity_bytes": knobs["buffer_kib"] * 1024})
    far = base.levels[-1].model_copy(update={"read_bytes_s": knobs["bandwidth_gb_s"] * 1e9})
    return base.model_copy(update={"array": array, "levels": (near, far)})
