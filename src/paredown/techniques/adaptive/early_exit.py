"""Early exits on a trained classifier (BranchyNet; Teerapittayanon et al. 2016, arXiv:1709.01686).

After one or more modules a small head answers for the inputs that it is sure of; the others go on.
Heads are trained towards the labels and the network's own outputs, then one threshold on their
uncertainty is set: the loosest at which `evaluate` loses at most ``lose``.

Cost law: an input that leaves at head i costs the trunk up to there and the heads so far; what one
run costs is a distribution over inputs, whose mean is the sum over exits of share times cost. A
batch shrinks as its inputs leave.

Deviations: the trunk is not trained along (the paper trains trunk and heads jointly), so the
network's own answers stay exactly what they were; heads are a pooled linear layer each, without
convolutions of their own; one threshold for all heads. Limits: classifiers whose run can be cut in
two; run in eager alone, the only backend here that stops half-way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.quality import agreement, judge
from paredown.runtime import forms
from paredown.runtime.exits import MEASURES, ExitingModel, Exits, uncertainty
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Policy,
    Range,
    Sites,
    Touches,
)
from paredown.techniques.adaptive.cuts import Cut, cuts, nearest, not_a_classifier
from paredown.techniques.adaptive.heads import Logits, OneHead, config, stage, trained_head
from paredown.techniques.quantize.common import paths, site
from paredown.techniques.recover import Plan
from paredown.workload import Workload, share

ROLE = "exit"
LATEST = 0.9
"""An exit after more of the work than this saves too little to be looked at."""
STEPS = 10
"""Thresholds tried."""


@dataclass(frozen=True)
class EarlyExit(Policy):
    """Heads on the way answer for inputs they are sure of (Teerapittayanon et al. 2016)."""

    name: ClassVar[str] = "early-exit"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "adaptive"
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.EXIT})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.TIME})
    hooks: ClassVar[frozenset[Literal["attention", "cache", "sampler_step", "exit"]]] = frozenset(
        {"exit"}
    )
    maturity: ClassVar[Any] = "trial"

    exits: Annotated[int, Choice(1, 2), "heads, spread evenly over the work"] = 1
    lose: Annotated[float, Choice(0.0, 0.005, 0.02), "share of the score that may be lost"] = 0.005
    threshold: Annotated[float, "uncertainty below which a head is sure (-1: by `lose`)"] = -1.0
    measure: Annotated[str, Choice(*MEASURES), "how uncertain a head is"] = "entropy"
    steps: Annotated[int, Choice(100, 300, 1000), "training steps of each head"] = 300
    lr: Annotated[float, Range(1e-4, 1e-1, log=True), "peak learning rate"] = 1e-2
    seed: Annotated[int, "order of the data"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.exits < 1:
            raise InputError(f"exits must be at least 1, got {self.exits}")
        if self.measure not in MEASURES:
            raise InputError(f"measure {self.measure!r}: one of {', '.join(MEASURES)}")
        if self.lose < 0 or (self.threshold < 0 and self.threshold != -1):
            raise InputError("lose must be at least 0, threshold at least 0 or -1")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, temperature=1.0, task=0.5, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Modules after which the run goes on with their result alone, ``path:exit``."""
        if isinstance(workload.model, ExitingModel):
            return Sites((), {f":{ROLE}": "it has exits already"})
        lack = self.missing(workload) or not_a_classifier(workload, graph)
        found = cuts(graph)
        if lack is None and not found:
            lack = "no module of its run makes all that the rest goes on with"
        if lack is not None:
            return Sites((), {f":{ROLE}": lack})
        early = {site(c.path, workload, ROLE): c.share for c in found}
        late = f"more than {LATEST:.0%} of the work is done by then"
        return Sites(
            tuple(s for s, done in early.items() if done <= LATEST),
            {s: late for s, done in early.items() if done > LATEST},
        )

    def chosen(self, workload: Workload, graph: Graph, sites: Sites) -> list[Cut]:
        """Where the heads go: evenly over the work, among the sites."""
        acting = {p for _, p in paths(workload, sites.ok)}
        found = [c for c in cuts(graph) if c.path in acting]
        if not found:
            raise NotApplicable(f"{self.name}: none of its sites is a cut of this run any more")
        return nearest(found, [(i + 1) / (self.exits + 1) for i in range(self.exits)])

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train the heads, then set the threshold."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        graph = capture(workload)
        logits = Logits.of(graph)
        chosen = self.chosen(workload, graph, sites)
        heads = [trained_head(workload, c, logits, data, self._plan()) for c in chosen]
        tensors = {
            f"side_heads.{i}.{name}": t
            for i, head in enumerate(heads)
            for name, t in head.tensors().items()
        }
        model = self._with(workload, chosen, logits, heads)
        _same_when_never_sure(workload, model)
        threshold = self.threshold if self.threshold >= 0 else self._loosest(workload, model, heads)
        _set(model, threshold)
        counts = _counts(workload, model)
        stages = [
            stage(c, threshold, (seen - gone) / seen if seen else 0.0)
            for c, (seen, gone) in zip(chosen, counts, strict=True)
        ]
        return Decisions(config(stages, logits, self.measure), tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Heads in their places; every second input leaves at each."""
        logits = Logits.of(graph)
        stages = [stage(c, 0.5) for c in self.chosen(workload, graph, sites)]
        return Decisions(config(stages, logits, self.measure))

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Attach the heads."""
        editor = Editor(workload)
        settings = decisions.values
        editor.attach("", "exits", settings)
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value)
        at = {s["path"] for s in settings["stages"]}
        touched = [s for s, p in paths(workload, sites.ok) if p in at]
        left = [f"{1 - s['continues']:.0%} after {s['path']}" for s in settings["stages"]]
        note = f"of the inputs that come there leave: {', '.join(left)}"
        # Who leaves early leaves the whole network: what comes later anywhere is touched as well.
        return editor.change(self, [*touched, f":{ROLE}"], decisions, notes=[note])

    def _with(
        self, workload: Workload, chosen: list[Cut], logits: Logits, heads: list[OneHead]
    ) -> Any:
        """A copy of the model with trained heads that are never sure."""
        model: Any = share(workload.model).eval()
        stages = [stage(c, 0.0) for c in chosen]
        forms.attach("exits", model, config(stages, logits, self.measure))
        for new, head in zip(model.side_heads, heads, strict=True):
            new.load_state_dict(head.tensors())
        return model.eval()

    def _loosest(self, workload: Workload, model: Any, heads: list[OneHead]) -> float:
        """The largest threshold tried at which no more than ``lose`` is lost."""
        calls = list(workload.calibration_inputs())
        with torch.inference_mode():
            unsure = [
                uncertainty(heads[0](*args, **kwargs), self.measure) for args, kwargs in calls
            ]
        levels = np.quantile(torch.cat(unsure).numpy(), np.linspace(1, 0.1, STEPS))
        allowed = self.lose * (workload.scale or 1.0 if workload.evaluate is not None else 1.0)
        before = self._worth(workload, workload.model)
        for level in levels:
            above = _above(float(level))
            _set(model, above)
            if self._worth(workload, model) >= before - allowed:
                return above
        return 0.0

    def _worth(self, workload: Workload, model: nn.Module) -> float:
        """`evaluate`'s mean; without it, agreement with the whole model on calibration inputs."""
        if workload.evaluate is not None:
            return float(np.mean(judge(workload.evaluate, model)))
        with torch.inference_mode():
            each = [
                agreement(workload.model(*args, **kwargs), model(*args, **kwargs))
                for args, kwargs in workload.calibration_inputs()
            ]
        return float(np.mean(each))


def _above(level: float) -> float:
    """A threshold that an uncertainty of ``level`` is below, in float32 too."""
    return level * (1 + 1e-6) + 1e-7


def _set(model: Any, threshold: float) -> None:
    exits: Exits = model.exits
    for each in exits.stages:
        each.threshold = threshold


def _counts(workload: Workload, model: Any) -> list[list[int]]:
    """Inputs seen and answered by each stage over the population."""
    model.exits.count()
    with torch.inference_mode():
        for args, kwargs in workload.population_inputs():
            model(*args, **kwargs)
    return model.exits.counts


def _same_when_never_sure(workload: Workload, model: Any) -> None:
    """The model's own answers come out exactly, and a part of a batch goes through as well.

    Raises ``NotApplicable`` for a model that counts on the batch it was given.
    """
    args, kwargs = workload.inputs, workload.kwargs
    with torch.inference_mode():
        want = workload.model(*args, **kwargs)
        if not torch.equal(model(*args, **kwargs), want):
            raise NotApplicable("its output depends on more than what it hands on at the exit")
        logits = OneStage(model)(*args, **kwargs)
        unsure = uncertainty(logits, model.exits.measure)
        if len(unsure) < 2 or float(unsure.amax()) == float(unsure.amin()):
            return
        middle = float(unsure.median())
        _set(model, _above(middle))
        try:
            found = model(*args, **kwargs)
        except RuntimeError as e:
            line = str(e).strip().splitlines()[0]
            raise NotApplicable(f"it cannot go on with a part of its batch: {line}") from e
        stays = unsure > _above(middle)
        if len(model.exits.stages) == 1 and not torch.allclose(
            found[stays], want[stays], rtol=1e-3, atol=1e-4
        ):
            raise NotApplicable("what it answers to an input depends on the rest of the batch")
    _set(model, 0.0)


class OneStage:
    """The first head's logits of a model with exits, run for them alone."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits ``(batch, classes)``."""
        first = self.model.exits.stages[0]
        first.always = True
        try:
            return self.model(*args, **kwargs)
        finally:
            first.always = False
