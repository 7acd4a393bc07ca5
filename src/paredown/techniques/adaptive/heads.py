"""Training the heads of early exits, on a trunk that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from paredown.graph.graph import Graph
from paredown.runtime import forms
from paredown.techniques.adaptive.cuts import Cut, channels_of, pool_of
from paredown.techniques.recover import Plan, train
from paredown.workload import TrainingData, Workload, share


def stage(
    cut: Cut, threshold: float, continues: float = 0.5, always: bool = False
) -> dict[str, Any]:
    """One stage of the hook ``exits``."""
    return {
        "path": cut.path,
        "channels": channels_of(cut.shape),
        "pool": pool_of(cut.shape),
        "threshold": threshold,
        "continues": continues,
        "always": always,
    }


@dataclass(frozen=True)
class Logits:
    """What a classifier gives for each input."""

    classes: int
    dtype: str

    @staticmethod
    def of(graph: Graph) -> Logits:
        """Those of a captured run."""
        t = graph.tensors[graph.outputs[0]]
        return Logits(t.shape[1], t.dtype)


def config(
    stages: list[dict[str, Any]],
    logits: Logits,
    measure: str = "entropy",
    converter: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of the hook ``exits``."""
    return {
        "stages": stages,
        "classes": logits.classes,
        "dtype": logits.dtype,
        "measure": measure,
        "converter": converter,
    }


class OneHead(nn.Module):
    """A model up to one head, of which only the head trains."""

    def __init__(self, workload: Workload, cut: Cut, logits: Logits) -> None:
        super().__init__()
        self.model: Any = share(workload.model).requires_grad_(False)
        forms.attach("exits", self.model, config([stage(cut, 0.0, always=True)], logits))
        self.model.side_heads.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """The trunk stays in evaluation mode: its running statistics are not the head's affair."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, *args: Any) -> Tensor:
        """The head's logits."""
        return self.model(*args)

    def tensors(self) -> dict[str, Tensor]:
        """The head's weights by their names in it."""
        head = self.model.side_heads[0]
        return {name: t.detach().clone() for name, t in head.named_parameters()}


def trained_head(
    workload: Workload, cut: Cut, logits: Logits, data: TrainingData, plan: Plan
) -> OneHead:
    """A head after ``cut``, trained towards the labels and towards the whole model's outputs."""
    head = OneHead(workload, cut, logits)
    for name, p in head.model.side_heads[0].named_parameters():
        nn.init.zeros_(p) if name.endswith("bias") else nn.init.xavier_uniform_(p)
    if plan.steps:
        with torch.enable_grad():
            train(head, share(workload.model), data, plan)
    return head.eval()
