"""What a loop around a model is: the one way it is captured, validated, timed and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from paredown.errors import InputError

Call = Callable[..., Any]
"""The model, or what stands for it: a compiled module, a facade."""

After = Callable[[int], None]
"""Called with the index of a step once the step is done: a clock, or a recorder's phase."""


def nothing(_: int) -> None:
    """Watch nothing."""


class Loop(ABC):
    """One run made of several calls of a model.

    ``phases`` name the first call and the later ones in a captured graph. Throughput counts
    ``unit``. ``parted``: the first step and the later ones are figures of their own.
    """

    run: ClassVar[str]
    phases: ClassVar[tuple[str, str]] = ("first", "step")
    unit: ClassVar[str] = "runs"
    parted: ClassVar[bool] = True

    @abstractmethod
    def once(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        after: After = nothing,
    ) -> Any:
        """One run. ``call`` is called in place of ``model``, whose signature decides how."""

    @abstractmethod
    def judged(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        like: Any = None,
    ) -> Any:
        """What a run is compared by; ``like`` is the reference's, whose choices are followed."""

    @abstractmethod
    def steps(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Calls of the model in one run."""

    def made(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Units one run makes, over the whole batch."""
        return 1

    @abstractmethod
    def why_not(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """Why this model cannot be run so on these inputs, None when it can."""

    @abstractmethod
    def words(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """One run in words."""


def behind(model: nn.Module) -> nn.Module:
    """The model that a facade stands for, whose signature and configuration count; else itself."""
    return getattr(model, "stands_for", model)


def signature_of(model: nn.Module) -> dict[str, Any]:
    """The parameters of a model's forward by name."""
    import inspect

    return dict(inspect.signature(behind(model).forward).parameters)


def stateful(model: nn.Module) -> bool:
    """Whether a forward takes ``state``: the protocol of `generate` and `stream` for any module."""
    return "state" in signature_of(model)


def split_state(out: Any, run: str) -> tuple[torch.Tensor, Any]:
    """The output and the state that a stateful forward returned. Raises ``InputError``."""
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], torch.Tensor):  # pyright: ignore[reportUnknownArgumentType]
        raise InputError(
            f"run={run!r} needs forward(x, ..., state=None) -> (output, state); "
            f"it returned a {type(out).__name__}"  # pyright: ignore[reportUnknownArgumentType]
        )
    return out  # type: ignore[return-value]
