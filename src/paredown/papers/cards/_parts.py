"""Parts of the architectures' cards: what each asks, and the threshold that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from paredown.workloads.digits import HELD_OUT

Build = Callable[[str], nn.Module]
Subject = tuple[str, nn.Module, tuple[Tensor, ...]]
Scores = dict[str, dict[str, list[float]]]
"""Network -> metric -> one value per seed."""

FLOORS = {"accuracy": 1 / (2 * HELD_OUT)}


@dataclass(frozen=True)
class Exact:
    """What holds by construction or is counted: ``value()`` against its threshold.

    ``how`` is ``measured`` for bytes that the allocator told.
    """

    name: str
    value: Callable[[], float]
    threshold: float = 1e-5
    op: Literal["<=", ">="] = "<="
    how: Literal["counted", "measured"] = "counted"


@dataclass(frozen=True)
class Work:
    """``macs`` or ``params`` of one trained network over another's: at most ``most``."""

    ours: str
    theirs: str
    most: float
    of: Literal["macs", "params"] = "macs"

    @property
    def name(self) -> str:
        """The check's name."""
        return f"{'MACs' if self.of == 'macs' else self.of}, {self.ours} over {self.theirs}"


@dataclass(frozen=True)
class Timing:
    """Networks side by side in one child: ``ours`` over the first, per run or per MAC.

    ``made(*args)`` gives (name, network, inputs); with ``train`` a run is a forward and a backward
    pass. ``most`` None reports the ratio and asks nothing of it.
    """

    made: Callable[..., Sequence[Subject]]
    args: tuple[Any, ...]
    ours: str
    theirs: str
    most: float | None
    per_mac: bool = False
    train: bool = False

    @property
    def name(self) -> str:
        """The check's name."""
        what = "training step's time" if self.train else "time"
        return f"{what}{' per MAC' if self.per_mac else ''}, {self.ours} over {self.theirs}"


@dataclass(frozen=True)
class Contrast:
    """A weighted sum over networks of a metric, paired by seed: at least ``least``."""

    name: str
    weights: Mapping[str, float]
    least: float
    metric: str
    unit: str = ""


def learns(network: str, least: float, metric: str = "accuracy", unit: str = "") -> Contrast:
    """The network reaches a stated accuracy (or another metric)."""
    return Contrast(f"{metric}, {network}", {network: 1.0}, least, metric, unit)


def better(
    ours: str, theirs: str, least: float = 0.0, metric: str = "accuracy", unit: str = ""
) -> Contrast:
    """One network's metric less the other's is at least this."""
    return Contrast(
        f"{metric}, {ours} minus {theirs}", {ours: 1.0, theirs: -1.0}, least, metric, unit
    )


@dataclass(frozen=True)
class Trained:
    """Small networks on a small task: ``score(build, name, seed, plan)`` gives metrics.

    Plans, and the figures that a network is to reach, were set in pilot runs with other seeds.
    ``score`` and ``build`` are importable. ``example`` gives the inputs on which parameters and
    MACs are counted; ``floors`` is the finest difference that judging can show, per metric.
    """

    score: Callable[[Build, str, int, Any], dict[str, float]]
    build: Build
    example: Callable[[], tuple[Tensor, ...]]
    plans: Mapping[str, Any]
    seeds: Mapping[str, int] = field(default_factory=lambda: {"quick": 5, "full": 10})
    floors: Mapping[str, float] = field(default_factory=lambda: dict(FLOORS))
