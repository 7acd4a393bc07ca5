"""A plain training loop for small tasks: AdamW, one cycle of the rate, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Callable[[], Iterable[tuple[tuple[Any, ...], Any]]]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Phase:
    """Some epochs on one source of batches (a lower resolution first makes training cheaper)."""

    batches: Batches
    epochs: int


def fit(
    model: nn.Module,
    phases: Sequence[Phase],
    *,
    rate: float = 2e-3,
    decay: float = 0.02,
    loss: Loss | None = None,
    smoothing: float = 0.05,
    seed: int = 0,
    bf16: bool = False,
    average: float = 0.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> float:
    """Train in place over all phases under one cosine cycle; returns the last epoch's mean loss.

    The rate rises over the first tenth of the steps, then falls to nothing. ``average`` > 0 keeps
    an exponential average of the weights with that horizon in steps and puts it in at the end.
    ``progress`` gets ``(epoch, epochs, mean loss)``. Torch's global seed is set to ``seed``.
    """
    torch.manual_seed(seed)
    judge = loss or (lambda out, y: F.cross_entropy(out, y, label_smoothing=smoothing))
    steps_per_epoch = [sum(1 for _ in p.batches()) for p in phases]
    total = sum(n * p.epochs for n, p in zip(steps_per_epoch, phases, strict=True))
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=total, pct_start=0.1
    )
    running = _Average(model, average) if average else None
    epochs = sum(p.epochs for p in phases)
    epoch, mean = 0, float("nan")
    model.train()
    for phase in phases:
        for _ in range(phase.epochs):
            sums, n = 0.0, 0
            for inputs, target in phase.batches():
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    value = judge(model(*inputs), target)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                if running is not None:
                    running.update(model)
                sums, n = sums + float(value.detach()), n + 1
            epoch, mean = epoch + 1, sums / max(n, 1)
            if progress is not None:
                progress(epoch, epochs, mean)
    if running is not None:
        running.put(model)
    model.eval()
    return mean


class _Average:
    """An exponential moving average of all floating parameters and buffers."""

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self.keep, self.steps = 1 - 1 / horizon, 0
        self.values = [t.detach().clone() for t in self._floats(model)]

    @staticmethod
    def _floats(model: nn.Module) -> list[Tensor]:
        return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step; the horizon grows from short to full so that the start is soon forgotten."""
        self.steps += 1
        keep = min(self.keep, (1 + self.steps) / (10 + self.steps))
        for mine, now in zip(self.values, self._floats(model), strict=True):
            mine.lerp_(now, 1 - keep)

    @torch.no_grad()
    def put(self, model: nn.Module) -> None:
        """Copy the averages into the model."""
        for mine, now in zip(self.values, self._floats(model), strict=True):
            now.copy_(mine)
