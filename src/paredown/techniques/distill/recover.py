"""Recovery: fine-tune a pared network towards the original it came from (knowledge distillation,
Hinton et al. 2015, arXiv:1503.02531), after fresh statistics for its batch normalisations.

Cost law: inference costs nothing more; training costs about four forward passes a step, one of them
the original's. Deviations: the best state by `evaluate` remains, the last one otherwise.
Limits: weights in integers are not trained, so it stands before the numeric steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Range,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.gradients import untrainable
from paredown.techniques.recover import Outcome, Plan, fresh_norms, snapshot, train
from paredown.workload import TrainingData, Workload, share

SITE = ":weights"
"""The one site: all trained weights of the network."""


@dataclass(frozen=True)
class Recover(Rewrite):
    """Fine-tune towards the original's outputs (Hinton et al. 2015, arXiv:1503.02531)."""

    name: ClassVar[str] = "recover"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = Stage.RECOVERY
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset()
    maturity: ClassVar[Any] = "stable"

    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    temperature: Annotated[float, Choice(1.0, 2.0, 4.0), "softening of the distilled outputs"] = 2.0
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    features: Annotated[float, Choice(0.0, 1.0), "weight of block outputs"] = 0.0
    norm_batches: Annotated[int, "batches for fresh normalisation statistics first (0: none)"] = 0
    bf16: Annotated[bool, "train under bfloat16 autocast"] = False
    channels_last: Annotated[bool, "train with images and filters laid out channels last"] = False
    seed: Annotated[int, "order of data and dropout"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.norm_batches < 0:
            raise InputError("norm_batches must be at least 0")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(
            self.steps,
            self.lr,
            self.temperature,
            self.task,
            self.features,
            bf16=self.bf16,
            channels_last=self.channels_last,
            seed=self.seed,
        )

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """All weights at once, unless none of them is trained."""
        lack = self.missing(workload)
        if lack is not None:
            return Sites((), {SITE: lack})
        if (why := untrainable(workload, graph)) is not None:
            return Sites((), {SITE: why})
        return Sites((SITE,))

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; the weights it ends with are the decision, with the steps granted."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        work = workload.own()
        if self.norm_batches:
            fresh_norms(work.model, data, self.norm_batches)
        outcome = Outcome(0, 0, 0.0, 0.0, "no steps asked")
        if self.steps:
            outcome = self._train(work, teacher_of(workload), data)
        before = snapshot(workload.model)
        trained = {k: t for k, t in snapshot(work.model).items() if not torch.equal(t, before[k])}
        return Decisions(outcome.values(), trained)

    def _train(self, work: Workload, teacher: nn.Module | None, data: TrainingData) -> Outcome:
        return train(work.model, teacher, data, self._plan(), evaluate=work.evaluate)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Nothing changes shape."""
        return Decisions({"steps": self.steps})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the trained tensors in."""
        editor = Editor(workload)
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value, tied=True)
        v = decisions.values
        notes = []
        if "ended" in v:
            notes.append(
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            )
        return editor.change(self, sites.ok, decisions, notes=notes)


def teacher_of(workload: Workload) -> nn.Module | None:
    """A copy, for hooks and eval mode, of the teacher that the training data names, else of the
    network as it was given; None where there is neither.
    """
    named = None if workload.training is None else workload.training.teacher
    held = workload.original if named is None else named
    return None if held is None else share(held)
