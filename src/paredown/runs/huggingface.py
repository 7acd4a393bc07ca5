"""Steps of a Hugging Face model that generates with its own cache, as its ``generate`` steps it.

Duck-typed on the forward's signature, without importing transformers. The cache goes by
``past_key_values`` (attention), ``cache_params`` (Mamba) or ``state`` (RWKV); an encoder runs once,
in the first call. Where the forward takes ``logits_to_keep``, the prompt's head is computed for its
last position alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from paredown.runs.loop import Call, behind, signature_of

CACHES = ("past_key_values", "cache_params", "state")
"""Names under which a forward takes its cache and its output gives it back."""


def can_generate(model: nn.Module) -> bool:
    """Whether this is a Hugging Face model with a language-modelling head."""
    model = behind(model)
    asked: Any = getattr(model, "can_generate", None)
    return callable(asked) and hasattr(model, "config") and bool(asked())


class HuggingFace:
    """One generation: ``first()`` on the prompt, then ``next(token)``."""

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        new_tokens: int,
    ) -> None:
        model = behind(model)
        self.call = call
        self.names = signature_of(model)
        self.given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        self.encodes = bool(getattr(model.config, "is_encoder_decoder", False))
        self.cache_name = next(n for n in CACHES if n in self.names)
        self.tokens = "decoder_input_ids" if self.encodes else "input_ids"
        self.rest: dict[str, Any] = {}
        self.mask = self.given.pop("attention_mask", None)
        self.grown: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.length = 0
        if not self.encodes and "attention_mask" in self.names:
            self._see(self.given["input_ids"], new_tokens)

    @staticmethod
    def why_not(model: nn.Module, kwargs: dict[str, Any]) -> str | None:
        """Why this model cannot be stepped, None when it can."""
        names = signature_of(model)
        if not any(n in names for n in CACHES) or "use_cache" not in names:
            return f"{type(model).__name__} takes no cache in its forward"
        encodes = bool(getattr(behind(model).config, "is_encoder_decoder", False))
        if encodes and "decoder_input_ids" not in kwargs:
            return "an encoder-decoder needs decoder_input_ids: the tokens its decoder starts from"
        return None

    def first(self) -> torch.Tensor:
        """Logits ``(batch, vocabulary)`` after the prompt."""
        given = dict(self.given)
        if self.grown is not None:
            given |= self._masked(slice(0, self.length))
        elif self.mask is not None:
            given["attention_mask"] = self.mask
        if "logits_to_keep" in self.names:
            given["logits_to_keep"] = 1
        out = self.call(**given, use_cache=True)
        if self.encodes:
            self.rest["encoder_outputs"] = (out.encoder_last_hidden_state,)
            if self.mask is not None:
                self.rest["attention_mask"] = self.mask
        return self._after(out)

    def next(self, token: torch.Tensor) -> torch.Tensor:
        """Logits after one more token ``(batch, 1)``."""
        given = {self.tokens: token, self.cache_name: self.cache, **self.rest}
        if self.grown is not None:
            self.length += 1
            given |= self._masked(slice(self.length - 1, self.length))
        return self._after(self.call(**given, use_cache=True))

    def _after(self, out: Any) -> torch.Tensor:
        self.cache = out[self.cache_name]
        return out.logits[:, -1]

    def _see(self, prompt: torch.Tensor, new_tokens: int) -> None:
        """The mask over prompt and new tokens, and positions that do not count padding."""
        batch, self.length = prompt.shape
        if self.mask is None:
            # `torch.ones` keeps its values in a capture, where masks decide on branches.
            every = (batch, self.length + new_tokens - 1)
            self.grown = torch.ones(every, dtype=torch.int64, device=prompt.device)
            return
        new = torch.ones((batch, new_tokens - 1), dtype=self.mask.dtype, device=prompt.device)
        self.grown = torch.cat([self.mask, new], dim=-1)
        if "position_ids" in self.names:
            self.positions = (self.grown.long().cumsum(-1) - 1).clamp(min=0)

    def _masked(self, new: slice) -> dict[str, Any]:
        """Mask and positions for a call that reads the tokens of ``new``."""
        assert self.grown is not None
        if self.cache_name != "past_key_values" and new.start > 0:
            return {}  # a recurrent state has taken the padding in already
        found: dict[str, Any] = {"attention_mask": self.grown[:, : new.stop]}
        if self.positions is not None:
            found["position_ids"] = self.positions[:, new]
        return found
