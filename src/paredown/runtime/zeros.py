"""The hook ``keep_zeros``: a mark on a pruned layer, so that training leaves its zeros zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from paredown.runtime.forms import hook


@hook
def keep_zeros(module: nn.Module, config: dict[str, Any]) -> None:
    """Mark a module: the zeros of its ``weight`` are a decision."""
    module.__dict__["keeps_zeros"] = True


def kept_zeros(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Weights of marked modules, each with the mask of what training may change."""
    return [
        (m.weight, m.weight.detach() != 0)
        for m in model.modules()
        if getattr(m, "keeps_zeros", False) and isinstance(m.weight, nn.Parameter)
    ]
