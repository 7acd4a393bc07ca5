"""A KV cache of the first tokens and the last ones, in a few bits (AccLLM, arXiv:2505.03745).

Liang et al. 2025, section III: Lambda-shaped attention sees ``sinks`` initial tokens (attention
sinks: Xiao et al. 2024, arXiv:2309.17453) and a ``window`` of the latest, so that a ring buffer is
all that is kept; each key and value of a head is coded in 4 bits between its own ends.

For Hugging Face models whose layers call ``update(keys, values, layer)``. A prompt read in one
call attends within itself in full; of it and of all later tokens the sinks and the window stay.
Keys keep the rotation of their own positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError, MissingExtra
from paredown.runtime.forms import hook


class Ring:
    """Keys or values of one layer: ``(batch, heads, slots, head_dim)`` in codes of 4 bits, or in
    floats (``bits`` 0). Slots 0 to ``sinks`` are the first tokens, the others a ring.
    """

    def __init__(self, like: Tensor, slots: int, bits: int) -> None:
        batch, heads, _, dim = like.shape
        self.dtype, self.bits, self.dim = like.dtype, bits, dim
        device = like.device
        if bits:
            self.codes = torch.zeros(
                (batch, heads, slots, dim // 2), dtype=torch.uint8, device=device
            )
            self.ends = torch.zeros((batch, heads, slots, 2), dtype=torch.float16, device=device)
        else:
            self.codes = torch.zeros((batch, heads, slots, dim), dtype=like.dtype, device=device)
            self.ends = self.codes[..., :0]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.ends.nbytes

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Put ``(batch, heads, n, head_dim)`` at ``n`` slots."""
        if not self.bits:
            self.codes[:, :, slots] = x
            return
        low, high = torch.aminmax(x.float(), dim=-1, keepdim=True)
        low = low.to(torch.float16)
        step = ((high - low.float()) / 15).clamp(min=1e-6).to(torch.float16)
        q = torch.round((x.float() - low.float()) / step.float()).clamp(0, 15).to(torch.uint8)
        self.codes[:, :, slots] = q[..., 0::2] | (q[..., 1::2] << 4)
        self.ends[:, :, slots] = torch.cat([low, step], -1)

    def read(self, slots: Tensor) -> Tensor:
        """``(batch, heads, n, head_dim)`` of some slots."""
        codes = self.codes[:, :, slots]
        if not self.bits:
            return codes
        q = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).float()
        low, step = self.ends[:, :, slots].float().split(1, -1)
        return (low + q * step).to(self.dtype)


class BoundedLayer:
    """One layer's keys and values: at most ``sinks + window`` tokens, whatever the length."""

    is_compileable = False
    is_sliding = False
    is_croppable = False

    def __init__(self, sinks: int, window: int, bits: int) -> None:
        self.sinks, self.window, self.bits = sinks, window, bits
        self.keys: Ring | None = None
        self.values: Ring | None = None
        self.seen = 0

    @property
    def is_initialized(self) -> bool:
        """Whether tokens have been written."""
        return self.keys is not None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(r.nbytes for r in (self.keys, self.values) if r is not None)

    def slots(self, tokens: list[int], device: torch.device) -> Tensor:
        """Where tokens stand: their own slots among the sinks, then round and round."""
        at = [t if t < self.sinks else self.sinks + (t - self.sinks) % self.window for t in tokens]
        return torch.tensor(at, dtype=torch.int64, device=device)

    def held(self, seen: int) -> list[int]:
        """Which of ``seen`` tokens are kept, in order."""
        first = range(min(self.sinks, seen))
        return [*first, *range(max(self.sinks, seen - self.window), seen)]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens; what they attend to: the tokens kept before, then themselves."""
        if self.keys is None or self.values is None:
            slots = self.sinks + self.window
            self.keys, self.values = (Ring(x, slots, self.bits) for x in (keys, values))
        before = self.slots(self.held(self.seen), keys.device)
        old = [ring.read(before) for ring in (self.keys, self.values)]
        start, self.seen = self.seen, self.seen + keys.shape[-2]
        stays = [t for t in self.held(self.seen) if t >= start]
        at = self.slots(stays, keys.device)
        some = torch.tensor([t - start for t in stays], dtype=torch.int64, device=keys.device)
        self.keys.write(at, keys.index_select(2, some))
        self.values.write(at, values.index_select(2, some))
        return torch.cat([old[0], keys], -2), torch.cat([old[1], values], -2)

    def get_seq_length(self) -> int:
        """Tokens seen, kept or not: what positions count."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of what is attended to and the position of its first: all before the queries."""
        held = len(self.held(self.seen))
        return held + query_length, self.seen - held

    def get_max_length(self) -> int:
        """No limit of tokens."""
        return -1


def cache(sinks: int, window: int, bits: int, layers: int) -> Any:
    """An empty Hugging Face ``Cache`` of bounded layers. Raises ``MissingExtra``."""
    try:
        from transformers.cache_utils import Cache, CacheLayerMixin
    except ImportError:
        raise MissingExtra("transformers", "llm", "a bounded cache") from None
    CacheLayerMixin.register(BoundedLayer)  # what a cache looks for among its layers
    made: Any = [BoundedLayer(sinks, window, bits) for _ in range(layers)]
    return Cache(layers=made)


def cache_bytes(held: Any) -> int:
    """Bytes of keys and values that a Hugging Face cache holds, bounded or its own."""
    total = 0
    for layer in held.layers:
        own = getattr(layer, "nbytes", None)
        total += own if own is not None else layer.keys.nbytes + layer.values.nbytes
    return total


@hook
def bounded_cache(module: nn.Module, config: dict[str, Any]) -> None:
    """Give each call of a Hugging Face model that starts a cache a bounded one."""
    model: Any = module
    layers = model.config.get_text_config().num_hidden_layers

    def begin(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("use_cache") and kwargs.get("past_key_values") is None:
            return args, {**kwargs, "past_key_values": cache(**config, layers=layers)}
        return None

    module.register_forward_pre_hook(begin, with_kwargs=True)


def why_not(model: Any, window: int, sinks: int, bits: int) -> str | None:
    """Why a model cannot have a bounded cache, None when it can. Raises ``InputError``."""
    if window < 1 or sinks < 0 or bits not in (0, 4):
        raise InputError("window must be at least 1, sinks at least 0 and bits 0 or 4")
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return "it is no Hugging Face model: its cache is its own"
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if getattr(config, "is_encoder_decoder", False) or kinds != {"full_attention"}:
        return "its cache is not one of full self-attention in every layer"
    heads = getattr(text, "num_attention_heads", 0)
    dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return "its heads are odd: two codes share a byte" if not heads or dim % 2 else None
