"""`stream`: a stateful step called over successive chunks of its input.

The model is any module with ``forward(chunk, ..., state=None) -> (output, state)``; the first call
gets ``state=None``, each later one the state that the call before gave back. The first input of the
workload is the whole stretch ``(..., length, ...)``, cut along ``axis`` into pieces of ``chunk``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from paredown.errors import InputError
from paredown.runs.loop import After, Call, Loop, nothing, split_state, stateful


@dataclass(frozen=True)
class Stream(Loop):
    """Chunks of ``chunk`` elements along ``axis`` of the first input, in order."""

    run: ClassVar[str] = "stream"

    chunk: int
    axis: int = 1

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise InputError(f"chunk must be at least 1, got {self.chunk}")

    def once(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        after: After = nothing,
    ) -> torch.Tensor:
        """The outputs of all chunks, joined along ``axis`` (stacked where they lack it)."""
        use = model if call is None else call
        state: Any = None
        outputs: list[torch.Tensor] = []
        for i, chunk in enumerate(args[0].split(self.chunk, dim=self.axis)):
            out, state = split_state(use(chunk, *args[1:], **kwargs, state=state), self.run)
            outputs.append(out)
            after(i)
        if outputs[0].ndim > self.axis % args[0].ndim:
            return torch.cat(outputs, dim=self.axis)
        return torch.stack(outputs)

    def judged(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        like: Any = None,
    ) -> Any:
        """The outputs themselves: nothing in a stream depends on a choice."""
        return self.once(model, args, kwargs, call=call)

    def steps(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Chunks of the example input."""
        return args[0].shape[self.axis] // self.chunk

    def why_not(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """A model without ``state``, or an input that the chunks do not fill."""
        if not stateful(model):
            return (
                f"{type(model).__name__} cannot stream: its forward takes no `state` "
                "(forward(chunk, ..., state=None) -> (output, state))"
            )
        if not args or not isinstance(args[0], torch.Tensor):
            return "the first input must be the whole stretch to stream, a tensor"
        x = args[0]
        if not -x.ndim <= self.axis < x.ndim:
            return f"axis {self.axis} is none of an input of shape {list(x.shape)}"
        if x.shape[self.axis] == 0 or x.shape[self.axis] % self.chunk:
            # A last chunk of another size would be another program.
            return (
                f"chunks of {self.chunk} do not divide {x.shape[self.axis]} along axis {self.axis}"
            )
        return None

    def words(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The chunks."""
        return f"{self.steps(args, kwargs)} chunks of {self.chunk} along axis {self.axis}"
