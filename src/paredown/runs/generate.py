"""`generate`: greedy decoding of a fixed number of new tokens from a prompt.

Two kinds of models: a Hugging Face model that can generate (with its own growing cache), and any
module with ``forward(tokens, ..., state=None) -> (logits, state)``. ``tokens`` are
``(batch, length)`` integers, ``logits`` are ``(batch, length, vocabulary)`` or, of the last
position alone, ``(batch, vocabulary)``; ``state`` is what the model wants back with the next token.

The first call reads the whole prompt (prefill) and gives the first new token; each later call reads
one token: ``new_tokens`` tokens take ``new_tokens - 1`` decode steps. No sampling and no stop at an
end-of-text token, so that one run is always the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from paredown.errors import InputError
from paredown.runs.huggingface import HuggingFace, can_generate
from paredown.runs.loop import After, Call, Loop, nothing, split_state, stateful


@dataclass(frozen=True)
class Generate(Loop):
    """Greedy generation of ``new_tokens`` tokens for each sequence of the batch."""

    run: ClassVar[str] = "generate"
    phases: ClassVar[tuple[str, str]] = ("prefill", "decode")
    unit: ClassVar[str] = "tokens"

    new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise InputError(f"new_tokens must be at least 1, got {self.new_tokens}")

    def once(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        after: After = nothing,
    ) -> torch.Tensor:
        """The new tokens ``(batch, new_tokens)``."""
        step = _stepper(model, model if call is None else call, args, kwargs, self.new_tokens)
        tokens = [step.first().argmax(-1, keepdim=True)]
        after(0)
        for i in range(1, self.new_tokens):
            tokens.append(step.next(tokens[-1]).argmax(-1, keepdim=True))
            after(i)
        return torch.cat(tokens, dim=1)

    def judged(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        call: Call | None = None,
        like: Any = None,
    ) -> dict[str, torch.Tensor]:
        """``{"logits": (batch, new_tokens, vocabulary)}``.

        With ``like`` the tokens fed are the reference's own (teacher forcing): one that differs
        counts once, not in all that follow it.
        """
        step = _stepper(model, model if call is None else call, args, kwargs, self.new_tokens)
        told = None if like is None else like["logits"].argmax(-1)
        logits = [step.first()]
        for i in range(1, self.new_tokens):
            if told is None:
                token = logits[-1].argmax(-1, keepdim=True)
            else:
                # As dense as a fresh one: compiled code would be compiled anew for other strides.
                token = told[:, i - 1 : i].clone(memory_format=torch.contiguous_format)
            logits.append(step.next(token))
        return {"logits": torch.stack(logits, dim=1)}

    def steps(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """One prefill and the decode steps."""
        return self.new_tokens

    def made(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """New tokens over the whole batch."""
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        return self.new_tokens * first.shape[0]

    def why_not(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """A model that neither generates with a cache nor takes ``state``."""
        if can_generate(model):
            return HuggingFace.why_not(model, kwargs)
        if not stateful(model):
            return (
                f"{type(model).__name__} cannot generate: it is no Hugging Face model with a cache "
                "and its forward takes no `state` (forward(tokens, ..., state=None) -> (logits, "
                "state))"
            )
        if not args or not isinstance(args[0], torch.Tensor) or args[0].ndim != 2:
            return "the first input must be the prompt's tokens (batch, length)"
        return None

    def words(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The prefill and the decode steps."""
        tokens = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        if tokens.is_floating_point():
            read = f"a prefill of {list(tokens.shape)} inputs"
        else:
            read = f"a prefill of {tokens.shape[0]} x {tokens.shape[-1]} tokens"
        return f"{read} and {self.new_tokens - 1} decode steps"


def _stepper(
    model: nn.Module, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], new_tokens: int
) -> Any:
    if can_generate(model):
        return HuggingFace(model, call, args, kwargs, new_tokens)
    return _Stateful(call, args, kwargs)


class _Stateful:
    """Steps of a module that takes its state and gives it back."""

    def __init__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call, self.args, self.kwargs = call, args, kwargs
        self.state: Any = None

    def first(self) -> torch.Tensor:
        """Logits ``(batch, vocabulary)`` after the prompt."""
        return self.next(self.args[0])

    def next(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after further tokens ``(batch, n)``."""
        # The old state is let go of while the new one is made: a cache that grows needs both.
        out = self.call(tokens, *self.args[1:], **self.kwargs, state=self.state)
        logits, self.state = split_state(out, "generate")
        return logits[:, -1] if logits.ndim == 3 else logits
