"""First estimates for a search: each technique variant previewed once, alone, priced per
backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from paredown import runtime
from paredown.cost import price
from paredown.device.device import Device
from paredown.errors import NotApplicable, ParedownError
from paredown.graph.graph import Graph
from paredown.search import pricing
from paredown.search.space import OFF, Candidate, Choice, Space
from paredown.technique import Needs, Touches

CUT_LOSS = {"train": 0.02, "statistics": 0.2, "off": 1.0}
"""Quality lost, as a share of the scale and per share of weights cut, by what recovers it: guesses
for cuts that were not surveyed."""
KEPT = {"train": 0.16, "statistics": 1.0, "off": 3.0}
"""Loss over what the survey found with fresh statistics: first guesses. Three recoveries of a
MobileNetV2 left 0.9 of 6.4 % (100 steps), 0.2 of 2.3 % (226) and 2.3 of 9.4 % (170)."""
KEPT_WEIGHT = 0.05**2
"""The guess for training weighs as one recovery of a cut that lost 5 %."""
NUMERIC_LOSS = 0.003

Step = tuple[str, str]
"""A technique and the label of its variant."""


BY_BACKEND = ("latency", "memory", "traffic", "energy")


def key(cost: str, backend: str) -> str:
    """Where a cost stands: how a backend executes a network changes some of them, not others."""
    return f"{cost}/{backend}" if cost.partition(".")[0] in BY_BACKEND else cost


@dataclass
class Prior:
    """``ratios[(technique, label)][key]``: cost after that variant alone over before."""

    base: dict[str, float]
    """Predicted costs of the original by `key`: ``latency/eager``, ``memory/openvino``, ``size``.
    """
    ratios: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    refused: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """(technique, label, backend) -> why that backend cannot run what the technique leaves."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Values of the original by metric, once known: predictions are scaled to them."""
    scale: float = 1.0
    own: str = "eager"
    """The backend of the baseline."""
    lossy: dict[str, bool] = field(default_factory=dict)
    recovers: frozenset[str] = frozenset()
    cuts: frozenset[str] = frozenset()
    surveyed: dict[Step, dict[str, float]] = field(default_factory=dict)
    """Loss of a cut alone with fresh statistics, by metric, in the metric's own unit."""
    trained: list[tuple[float, float]] = field(default_factory=list)
    """Surveyed loss and the loss that training left, of the recoveries measured so far."""

    def __call__(self, candidate: Candidate, metric: str) -> float:
        """The estimate of one metric, in SI units."""
        on = [(a, label) for a, label in candidate.point if (a, label) in self.ratios]
        name = metric.partition(".")[0]
        if name in ("drop", "fidelity", "score"):
            return self._quality(name, on)
        cost = "latency" if name == "throughput" else name
        if key(metric, self.own) in self.base:
            cost = metric  # a loop's part has a prediction of its own
        at = key(cost, candidate.backend)
        value = self.base.get(at, 1.0)
        for step in on:
            value *= self.ratios[step].get(at, 1.0)
        # A quantile is predicted like the whole, and scaled to the original's own quantile.
        known = self.baseline.get(metric if name != "throughput" else cost, self.baseline.get(cost))
        reference = self.base.get(key(cost, self.own))
        if known is not None and reference:
            value *= known / reference
        if name == "throughput":
            # So many runs, or tokens of them, in the time of one run.
            made = self.baseline.get("throughput", 1.0) * self.baseline.get("latency", 1.0)
            return (made if "throughput" in self.baseline else 1.0) / value
        return value

    def observe(self, candidate: Candidate, measured: dict[str, float]) -> None:
        """Learn what share of a cut's loss training leaves, from one measured recovery."""
        on = self._lossy(candidate.point)
        label = next((label for a, label in candidate.point if a in self.recovers), OFF)
        metric = "drop" if "drop" in measured else "fidelity"
        if label != "train" or metric not in measured:
            return
        alone = self._cuts(metric, [s for s in on if s[0] in self.cuts])
        left = measured[metric] if metric == "drop" else 1.0 - measured[metric]
        numeric = NUMERIC_LOSS * self._unit(metric) * sum(s[0] not in self.cuts for s in on)
        self.trained.append((alone, max(0.0, left - numeric)))

    def _quality(self, name: str, on: list[Step]) -> float:
        metric = "drop" if name == "score" else name
        lossy = [s for s in on if self.lossy.get(s[0], False)]
        cuts = [s for s in lossy if s[0] in self.cuts]
        recovery = next((label for a, label in on if a in self.recovers), OFF)
        known = [s for s in cuts if self._alone(s, metric) is not None]
        loss = self._cuts(metric, known) * self._kept(recovery)
        for step in cuts:
            if step not in known:
                gone = 1.0 - self.ratios[step].get("params", 1.0)
                loss += CUT_LOSS[recovery] * gone * self._unit(metric)
        loss += NUMERIC_LOSS * self._unit(metric) * (len(lossy) - len(cuts))
        if name == "drop":
            return loss
        top = 1.0 if name == "fidelity" else self.baseline.get("score", self.scale)
        return top - loss

    def _lossy(self, point: Iterable[Step]) -> list[Step]:
        return [s for s in point if s in self.ratios and self.lossy.get(s[0], False)]

    def _unit(self, metric: str) -> float:
        return self.scale if metric == "drop" else 1.0

    def _cuts(self, metric: str, cuts: list[Step]) -> float:
        """Losses add; a cut that gained by chance is not credited."""
        return sum(max(0.0, self._alone(s, metric) or 0.0) for s in cuts)

    def _alone(self, step: Step, metric: str) -> float | None:
        """The surveyed loss, or for a cut that was left out one between its neighbours'."""
        if step in self.surveyed:
            return self.surveyed[step].get(metric)
        known = sorted(
            (1.0 - self.ratios[s].get("params", 1.0), loss[metric])
            for s, loss in self.surveyed.items()
            if s[0] == step[0] and s in self.ratios and metric in loss
        )
        if len(known) < 2:
            return None
        gone = 1.0 - self.ratios[step].get("params", 1.0)
        return float(np.interp(gone, [g for g, _ in known], [x for _, x in known]))

    def _kept(self, recovery: str) -> float:
        if not self.recovers:
            return 1.0  # The survey had no statistics to renew either.
        if recovery != "train":
            return KEPT[recovery]
        above = KEPT["train"] * KEPT_WEIGHT + sum(a * left for a, left in self.trained)
        return above / (KEPT_WEIGHT + sum(a * a for a, _ in self.trained))


def prior(
    space: Space,
    graph: Graph,
    device: Device,
    *,
    scale: float | None,
    progress: Callable[[str], None] | None = None,
) -> Prior:
    """Preview every variant once. One that cannot be previewed is recorded, never guessed."""
    own = runtime.own_backend(graph.source)
    found = Prior(_costs(graph, device, space.backends, own), scale=scale or 1.0, own=own)
    cuts: set[str] = set()
    recovers: set[str] = set()
    for choice in space.choices:
        cls = choice.technique
        found.lossy[choice.name] = not choice.always and Needs.TRAINING not in cls.needs
        if Touches.WEIGHT_SHAPE in cls.touches:
            cuts.add(choice.name)
        if Needs.TRAINING in cls.needs:
            recovers.add(choice.name)
        for label in ("on",) if choice.always else choice.variants:
            if progress is not None:
                progress(f"previewing {choice.name} {label}")
            _preview(found, choice, label, graph, device, space.backends)
    found.cuts, found.recovers = frozenset(cuts), frozenset(recovers)
    return found


def _preview(
    found: Prior, choice: Choice, label: str, graph: Graph, device: Device, backends: list[str]
) -> None:
    assert label != OFF
    step = (choice.name, label)
    if Needs.TRAINING in choice.technique.needs:
        found.ratios[step] = {}
        return
    technique = choice.technique(**choice.variants.get(label, {}))
    try:
        sites = technique.sites(graph.source, graph)
        keep = [s for s in choice.sites.ok if s in sites.ok]
        after = technique.preview(graph, sites.only(keep) if keep else sites).graph
    except NotApplicable as e:
        found.failed[step] = str(e)
        return
    except ParedownError as e:
        found.failed[step] = f"its preview failed: {e}"
        return
    for name in backends:
        reasons = runtime.backend(name).supports(after.source, after)
        if reasons:
            found.refused[(*step, name)] = reasons[0]
    costs = _costs(after, device, backends, found.own)
    found.ratios[step] = {k: costs[k] / found.base[k] for k in costs if found.base.get(k)}


def _costs(graph: Graph, device: Device, backends: list[str], own: str) -> dict[str, float]:
    out: dict[str, float] = {}
    for backend in dict.fromkeys([own, *backends]):
        found = pricing.predicted(price(graph, device, backend=backend))
        for cost, figure in found.items():
            if cost.partition(".")[0] in BY_BACKEND and figure.value is not None:
                out[key(cost, backend)] = figure.value
    out["size"] = float(weight_bytes(graph))
    out["macs"] = float(graph.macs)
    out["params"] = float(graph.params)
    return out


def weight_bytes(graph: Graph) -> int:
    """Bytes of every parameter and buffer of a run, tied storages once."""
    by_storage: dict[int, int] = {}
    for t in graph.tensors.values():
        if t.kind in ("parameter", "buffer"):
            by_storage[t.storage] = max(by_storage.get(t.storage, 0), t.nbytes)
    return sum(by_storage.values())
