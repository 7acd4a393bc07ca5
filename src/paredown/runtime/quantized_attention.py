"""The hook ``quantized_attention``: both products of an attention over integer codes.

The module keeps its children and its code. While it runs, its call of torch's scaled dot product
attention is answered here: queries, keys and values are coded uniformly, and the attention weights
by a quantizer of their own (RepQ-ViT: Li et al. 2023, arXiv:2212.08254, section 3.3, equations 12
to 15; kept by RepQuant, arXiv:2402.05628). A weight ``a`` of log-sqrt2 has the code
``q = round(-2 log2(a / s))`` and stands for ``s 2**(-q / 2)``, which is the shift
``s 2**(-ceil(q / 2))`` times 1 or, where ``q`` is odd, sqrt(2): the powers alone are log2's.
Weights beyond the last code are 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paredown.errors import InputError
from paredown.runtime import ops
from paredown.runtime.forms import hook
from paredown.runtime.quantized import PackedForm

WEIGHTS = ("log-sqrt2", "log2", "uniform", "float")
"""Quantizers of attention weights."""
CHILD = "attention_ranges"
"""The child module that holds a quantized attention's scales."""

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class AttentionRanges(PackedForm):
    """Scales and zero points of queries, keys, values; the scale of the weights.

    Its forward is the attention: ``(batch, heads, tokens, dim)`` each to the same shape.
    """

    def __init__(self, bits: int, weights: str) -> None:
        super().__init__()
        if weights not in WEIGHTS:
            raise InputError(f"attention weights {weights!r}: one of {', '.join(WEIGHTS)}")
        self.bits, self.weights = bits, weights
        for name in ("query", "key", "value"):
            self.register_buffer(f"{name}_scale", torch.ones(1))
            self.register_buffer(f"{name}_zero", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("weight_scale", torch.ones(1))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """Attention over coded queries, keys, values and weights."""
        q, k, v = self.coded("query", query), self.coded("key", key), self.coded("value", value)
        return self.coded_weights(attention_weights(q, k, mask, causal, scale)) @ v

    def coded(self, name: str, x: Tensor) -> Tensor:
        """What the codes of queries, keys or values stand for."""
        scale, zero = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        codes = ops.quantize(x, scale, zero, 0, 2**self.bits - 1, -1)
        return ops.dequantize(codes, scale, zero, -1, x.dtype)

    def coded_weights(self, a: Tensor) -> Tensor:
        """What the codes of attention weights stand for, in their dtype."""
        if self.weights == "float":
            return a
        scale: Any = self.weight_scale
        codes = to_codes(a, scale, self.bits, self.weights)
        return from_codes(codes, scale, self.bits, self.weights).to(a.dtype)


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Softmax weights ``(batch, heads, tokens, tokens)`` as torch's own attention has them."""
    logits = query @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
    if causal:
        shape = (query.shape[-2], key.shape[-2])
        ahead = torch.ones(shape, dtype=torch.bool, device=query.device).triu(1)
        logits = logits.masked_fill(ahead, float("-inf"))
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        logits = logits + mask
    return logits.softmax(-1)


def to_codes(a: Tensor, scale: Tensor, bits: int, kind: str) -> Tensor:
    """Codes of attention weights, as float whole numbers; logarithmic ones are not cut at the end.

    A logarithmic code over ``2**bits - 1`` stands for 0 (so does the infinite code of 0 itself).
    """
    if kind == "uniform":
        return torch.clamp(torch.round(a / scale), 0, 2**bits - 1)
    per = 2 if kind == "log-sqrt2" else 1
    return torch.clamp(torch.round(torch.log2(a / scale) * -per), min=0)


def from_codes(codes: Tensor, scale: Tensor, bits: int, kind: str) -> Tensor:
    """What codes stand for; logarithmic ones by a shift and, for sqrt(2), the code's parity."""
    if kind == "uniform":
        return codes * scale
    top = 2**bits - 1
    near = torch.clamp(codes, max=top)
    if kind == "log2":
        value = torch.pow(2.0, -near)
    else:
        shift = torch.ceil(near * 0.5)
        odd = 2 * shift - near
        value = torch.pow(2.0, -shift) * (1 + odd * (math.sqrt(2) - 1))
    return torch.where(codes <= top, value * scale, torch.zeros_like(value))


class QuantizedAttention(nn.Module):
    """Mixed in before an attention's own class: the same children, its products over codes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own class, its scaled dot product attention answered by the ranges."""
        with _Answer(self.get_submodule(CHILD)):
            return super().forward(*args, **kwargs)


class _Answer(TorchFunctionMode):
    """Answers scaled dot product attention while entered."""

    def __init__(self, ranges: nn.Module) -> None:
        super().__init__()
        self.ranges = ranges

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Pass every other function on."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.ranges(*asked(args, kwargs))


def asked(args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
    """Query, key, value, mask, whether causal and the scale of a call of torch's attention."""
    given: dict[str, Any] = {**(kwargs or {}), **dict(zip(_ARGUMENTS, args, strict=False))}
    if given.get("dropout_p"):
        raise InputError("attention over codes is for eval mode: it takes no dropout")
    q, k, v = (given[name] for name in _ARGUMENTS[:3])
    if given.get("enable_gqa"):
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    return q, k, v, given.get("attn_mask"), bool(given.get("is_causal")), given.get("scale")


@cache
def _coded(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantized{cls.__name__}", (QuantizedAttention, cls), {})


@hook
def quantized_attention(module: nn.Module, config: dict[str, Any]) -> None:
    """Code the attention of ``module``: ``config`` has ``bits`` and ``weights`` (see `WEIGHTS`)."""
    at: Any = module
    at.add_module(CHILD, AttentionRanges(int(config["bits"]), config["weights"]))
    at.__class__ = _coded(type(at))
