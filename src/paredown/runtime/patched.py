"""The hook ``patched``: a model whose early stage runs in patches, its modules where they were.

The stage's first module runs the whole schedule (`runtime.patches`); the modules behind it hand on
small stand-ins, and the last one the result, so that the model's own code between them runs
unchanged. While a model trains, its modules run as they are: patches are for inference.

Paper: MCUNetV2 (Lin et al. 2021, arXiv:2110.15352).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.runtime.forms import hook
from paredown.runtime.patches import Schedule, Stage

SIDE = 8
"""Rows and columns of a stand-in: enough for pools in the model's own code."""


@dataclass
class Run:
    """What the modules of one stage share. Plain data around the model: copied with it."""

    model: nn.Module
    schedule: Schedule
    result: Tensor | None = None

    def weight(self, name: str) -> Tensor:
        """A parameter or buffer of the model as it is; raises ``InputError`` when it is gone."""
        owner, _, own = name.rpartition(".")
        try:
            return getattr(self.model.get_submodule(owner), own)
        except AttributeError:
            raise InputError(
                f"patches: {name} was replaced after the schedule was made: schedule patches last"
            ) from None


class PatchedUnit(nn.Module):
    """Mixed in before the class of a stage's module."""

    patches: Run
    place: tuple[bool, bool]
    gives: tuple[int, torch.dtype]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``(batch, channels, height, width)``: the stage's result, or a stand-in for a map."""
        first, last = self.place
        if self.training:
            return super().forward(x, *args, **kwargs)
        run = self.patches
        if first:
            run.result = run.schedule.run(x, run.weight)
        if last:
            result, run.result = run.result, None
            if result is None:
                raise InputError("patches: the stage's last module ran before its first")
            return result
        channels, dtype = self.gives
        return torch.zeros(x.shape[0], channels, SIDE, SIDE, dtype=dtype, device=x.device)


@cache
def _patched(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Patched{cls.__name__}", (PatchedUnit, cls), {})


@hook
def patched(module: nn.Module, config: dict[str, Any]) -> None:
    """Let the early stage of ``module`` run in patches.

    ``config``: ``stage`` (`Stage.to_json`), ``tiles`` along each side, and ``units``: the stage's
    modules in the order they run, each ``[path, channels, dtype]``.
    """
    run = Run(module, Schedule(Stage.from_json(config["stage"]), int(config["tiles"])))
    units = config["units"]
    for i, (path, channels, dtype) in enumerate(units):
        at: Any = module.get_submodule(path)
        at.__class__ = _patched(type(at))
        at.patches = run
        at.place = (i == 0, i == len(units) - 1)
        at.gives = (int(channels), getattr(torch, dtype))
