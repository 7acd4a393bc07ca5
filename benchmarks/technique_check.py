"""What makes a network fit to tell techniques apart, asserted before anything is run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown import quality
from paredown.workload import Workload

WEIGHTED = (nn.Linear, nn.Conv2d, nn.Embedding)
CALLS = 32
"""Calibration inputs that ranges are taken from."""


@dataclass(frozen=True)
class Fitness:
    """Scores on the deciding examples: in fp32, and after plain 4 bits per tensor."""

    fp32: float
    plain_4bit: float
    examples: int

    def why_not(self, asked: dict[str, Any]) -> str | None:
        """Why it is not fit, None when it is; ``asked`` holds ``fp32`` and ``plain_4bit_loses``."""
        low, high = asked["fp32"]
        if not low <= self.fp32 <= high:
            return f"scores {self.fp32:.3f} in fp32, outside {low} to {high}"
        lost = self.fp32 - self.plain_4bit
        if lost < asked["plain_4bit_loses"]:
            return f"plain 4 bits lose {lost:.3f}, less than {asked['plain_4bit_loses']}"
        return None


def fitness(workload: Workload) -> Fitness:
    """Judge a network as it is and rounded plainly."""
    assert workload.verify is not None
    before = quality.judge(workload.verify, workload.model)
    after = quality.judge(workload.verify, plain_4bit(workload))
    assert not isinstance(before, float)
    assert not isinstance(after, float)
    return Fitness(float(before.mean()), float(after.mean()), len(before))


@torch.no_grad()
def plain_4bit(workload: Workload) -> nn.Module:
    """Round to nearest on 4 bits, one scale per tensor: weights of linears, convolutions and
    embeddings (symmetric, by their largest) and inputs of the first two (over the calibration
    data's range).
    """
    model = workload.own().model.eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, WEIGHTED)}
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(low, float(args[0].min())), max(high, float(args[0].max()))

        return look

    inner = {n: m for n, m in layers.items() if not isinstance(m, nn.Embedding)}
    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in inner.items()]
    for args, kwargs in list(workload.calibration_inputs())[:CALLS]:
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    for name, module in layers.items():
        step = module.weight.abs().max() / 7
        module.weight = nn.Parameter((module.weight / step).round().clamp(-7, 7) * step)
        if name in ranges:
            module.register_forward_pre_hook(_rounding(*ranges[name]))
    return model


def _rounding(low: float, high: float) -> Any:
    step = max(high - low, 1e-12) / 15

    def rounded(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (((args[0] - low) / step).round().clamp(0, 15) * step + low, *args[1:])

    return rounded
