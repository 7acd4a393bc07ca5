"""`sample`: a denoising loop, the model called once per step of a scheduler.

The model predicts from the noisy sample and the time step: ``forward(x, t, ...) -> prediction``,
``t`` an integer tensor ``(batch,)``. The first input of the workload is the noise to start from.
A scheduler is anything with ``timesteps`` (a sequence, first to last) and
``step(prediction, timestep, x)`` that returns the next sample, or an object with ``prev_sample``,
as the schedulers of diffusers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from paredown.errors import InputError
from paredown.runs.loop import After, Call, Loop, nothing, signature_of


class Scheduler(Protocol):
    """Which time steps a sampler visits, and how a prediction moves the sample."""

    @property
    def timesteps(self) -> Sequence[int] | torch.Tensor:
        """The steps, first to last."""
        ...

    def step(self, model_output: Any, timestep: Any, sample: Any, /) -> Any:
        """The next sample, or an object with ``prev_sample``."""
        ...


@dataclass(frozen=True)
class DDIM:
    """Deterministic sampling of a model that predicts the noise (DDIM, arXiv:2010.02502, eq. 12).

    ``steps`` of ``train_steps`` are visited, evenly spaced from the last; betas rise linearly from
    ``beta_start`` to ``beta_end`` as in DDPM (arXiv:2006.11239, section 4).
    """

    steps: int = 10
    train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.train_steps:
            raise InputError(f"steps must be 1 to {self.train_steps}, got {self.steps}")

    @property
    def timesteps(self) -> list[int]:
        """From late to early."""
        stride = self.train_steps // self.steps
        return [i * stride for i in reversed(range(self.steps))]

    def kept(self, timestep: int) -> float:
        """Share of the signal's variance that is left at a step; 1 before the first."""
        table = _signal(self.train_steps, self.beta_start, self.beta_end)
        return table[timestep] if timestep >= 0 else 1.0

    def step(self, model_output: Any, timestep: int, sample: Any, /) -> Any:
        """Equation 12 with sigma 0."""
        now = self.kept(timestep)
        before = self.kept(timestep - self.train_steps // self.steps)
        clean = (sample - (1 - now) ** 0.5 * model_output) / now**0.5
        return before**0.5 * clean + (1 - before) ** 0.5 * model_output


@lru_cache
def _signal(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Running products of ``1 - beta``: a sampler looks two up in every step."""
    rise = (last - first) / max(steps - 1, 1)
    return tuple(accumulate((1.0 - first - rise * i for i in range(steps)), mul))


@dataclass(frozen=True)
class Sample(Loop):
    """One denoising run over all steps of ``scheduler``."""

    run: ClassVar[str] = "sample"
    parted: ClassVar[bool] = False

    scheduler: Any

    def once(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        after: After = nothing,
    ) -> torch.Tensor:
        """The sample after the last step, shaped like the noise."""
        use = model if call is None else call
        x = args[0]
        for i, t in enumerate(self.scheduler.timesteps):
            when = torch.full((x.shape[0],), int(t), dtype=torch.int64, device=x.device)
            moved = self.scheduler.step(use(x, when, *args[1:], **kwargs), t, x)
            x = getattr(moved, "prev_sample", moved)
            if not isinstance(x, torch.Tensor):
                raise InputError(
                    f"{type(self.scheduler).__name__}.step must return the next sample, "
                    f"got a {type(x).__name__}"
                )
            after(i)
        return x

    def judged(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        like: Any = None,
    ) -> Any:
        """The final sample: what the steps' errors add up to."""
        return self.once(model, args, kwargs, call=call)

    def steps(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Steps of the scheduler."""
        return len(self.scheduler.timesteps)

    def why_not(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """A scheduler without steps, or a model that takes no time step."""
        if not callable(getattr(self.scheduler, "step", None)) or not hasattr(
            self.scheduler, "timesteps"
        ):
            return "a scheduler needs `timesteps` and `step(prediction, timestep, x)`"
        if self.scheduler.timesteps is None or len(self.scheduler.timesteps) == 0:
            return "the scheduler has no time steps (diffusers: call set_timesteps first)"
        if not args or not isinstance(args[0], torch.Tensor) or not args[0].is_floating_point():
            return "the first input must be the noise to start from"
        if len(signature_of(model)) < 2:
            return f"{type(model).__name__}.forward takes no time step: forward(x, t, ...)"
        return None

    def words(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The denoising steps."""
        return f"{self.steps(args, kwargs)} denoising steps of {type(self.scheduler).__name__}"
