"""A memory of results in front of a classifier (Kinnas et al. 2024, arXiv:2412.01039, the second
half of their system; the first is `dual`).

Cost law: an image seen before costs its hash alone, a new one the hash and the network; the mean is
the hash plus the share of misses times the network. Lossless with ``key="exact"``; with a hash, two
images of one hash get one answer.

Deviations: the memory keeps whole rows of logits, not labels, so that the output stays what it was;
it holds ``capacity`` of them and drops those not asked for longest (the authors' has no bound);
moments as keys are left out. Limits: one input of images, one row of logits each; eager alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from paredown.editing import Editor
from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.exits import ExitingModel
from paredown.runtime.results import KEYS, RememberingModel
from paredown.technique import Change, Choice, Decisions, Lowers, Policy, Sites, Touches
from paredown.techniques.adaptive.cuts import not_a_classifier
from paredown.workload import Workload

SITE = ":results"


@dataclass(frozen=True)
class ResultMemory(Policy):
    """Images seen before are answered from memory (Kinnas et al. 2024)."""

    name: ClassVar[str] = "result-memory"
    paper: ClassVar[str | None] = "dual-complementary-cnn"
    family: ClassVar[str] = "adaptive"
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.EXIT})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.TIME})
    hooks: ClassVar[frozenset[Literal["attention", "cache", "sampler_step", "exit"]]] = frozenset(
        {"exit"}
    )
    maturity: ClassVar[Any] = "trial"

    key: Annotated[str, Choice(*KEYS), "difference hash, or the image's own bytes"] = "hash"
    capacity: Annotated[int, Choice(1000, 100_000), "results kept at most"] = 1000

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.key not in KEYS:
            raise InputError(f"key {self.key!r}: one of {', '.join(KEYS)}")
        if self.capacity < 1:
            raise InputError(f"capacity must be at least 1, got {self.capacity}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """The network as a whole."""
        why = self.missing(workload) or not_a_classifier(workload, graph)
        images = [graph.tensors[t] for t in graph.inputs]
        if isinstance(workload.model, (RememberingModel, ExitingModel)):
            why = "it has a memory or exits already"
        elif why is None and (len(images) != 1 or len(images[0].shape) != 4 or workload.kwargs):
            why = "its input is not one batch of images"
        elif why is None and not graph.weights():
            why = "a network without weights is no more work than a hash"
        return Sites((), {SITE: why}) if why is not None else Sites((SITE,))

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """How many of the population's inputs are new, in its order."""
        probe = Editor(workload)
        probe.attach("", "results", self._config(1.0))
        model: Any = probe.model.eval()
        with torch.inference_mode():
            for args, kwargs in workload.population_inputs():
                model(*args, **kwargs)
        seen = model.results
        return Decisions(self._config(1 - seen.hits / seen.asked if seen.asked else 1.0))

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Every input new."""
        return Decisions(self._config(1.0))

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Attach the memory."""
        editor = Editor(workload)
        editor.attach("", "results", decisions.values)
        note = f"{decisions.values['misses']:.0%} of the population's inputs are new"
        return editor.change(self, sites.ok, decisions, notes=[note])

    def _config(self, misses: float) -> dict[str, Any]:
        return {"key": self.key, "capacity": self.capacity, "misses": misses}
