"""Fixed-point words as high-level synthesis has them: casts of floats, and whole numbers alone.

Dai et al. 2024, "Trainable fixed-point quantization for deep learning acceleration on FPGAs" (QFX),
arXiv:2401.17544: a tensor is ``bits`` wide with ``fraction`` bits behind the binary point, a cast
is ``overflow(round(x << fraction), bits) >> fraction``. ``round`` and ``truncate`` are ``AP_RND``
(halves go up) and ``AP_TRN`` (down) of ``ap_fixed``, ``saturate`` and ``wrap`` its ``AP_SAT`` and
``AP_WRAP``. `Codes` computes the same in int64 alone, whatever torch functions a network calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError

Round = Literal["round", "truncate"]
Overflow = Literal["saturate", "wrap"]
EXACT = 2**24
"""Whole numbers up to here, and so sums of such numbers in any order, are exact in float32."""


@dataclass(frozen=True)
class Word:
    """A width in bits, with or without a sign, and what happens to what does not fit."""

    bits: int
    signed: bool = True
    rounding: Round = "round"
    overflow: Overflow = "saturate"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 24:
            raise InputError(f"a fixed-point word takes 1 to 24 bits, got {self.bits}")
        if self.rounding not in ("round", "truncate") or self.overflow not in ("saturate", "wrap"):
            raise InputError(f"unknown rounding {self.rounding!r} or overflow {self.overflow!r}")

    @property
    def codes(self) -> tuple[int, int]:
        """Least and largest code."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def fit(self, codes: Tensor) -> Tensor:
        """Whole numbers brought into the word, int64 or float."""
        low, high = self.codes
        if self.overflow == "saturate":
            return codes.clamp(low, high)
        return torch.remainder(codes - low, high - low + 1) + low


def cast(x: Any, word: Word, fraction: int) -> Any:
    """A float tensor (or `Codes`) as the nearest numbers of a word, in float32 (or `Codes`)."""
    if isinstance(x, Codes):
        return x.cast(word, fraction)
    return word.fit(whole(x.float() * 2.0**fraction, word.rounding)) * 2.0**-fraction


def whole(x: Tensor, rounding: Round) -> Tensor:
    """Whole numbers at or next to ``x``; the remainder is exact, so halves are told exactly."""
    low = torch.floor(x)
    return low if rounding == "truncate" else low + (x - low >= 0.5)


def digits(codes: Tensor, places: int) -> Tensor:
    """Non-adjacent form: ``(places + 1, *shape)`` of -1, 0, 1, the least place first.

    ``codes = sum_e digits[e] << e`` for int64 codes of ``places`` bits; no form has fewer digits.
    """
    rest, found = codes.to(torch.int64), []
    for _ in range(places + 1):
        digit = (rest & 1) * (2 - (rest & 3))
        found.append(digit)
        rest = (rest - digit) >> 1
    return torch.stack(found)


def hot_codes(bits: int, hot: int) -> Tensor:
    """Every code of a signed word with at most ``hot`` digits, ascending; all of them for 0."""
    low, high = Word(bits).codes
    codes = torch.arange(low, high + 1)
    return codes if hot == 0 else codes[digits(codes, bits).abs().sum(0) <= hot]


_IN_INTEGERS: ContextVar[bool] = ContextVar("in_integers", default=False)


@contextmanager
def in_integers() -> Generator[None]:
    """Inside, fixed-point layers turn what they read into `Codes` and compute with those."""
    token = _IN_INTEGERS.set(True)
    try:
        yield
    finally:
        _IN_INTEGERS.reset(token)


def entered(x: Any, word: Word, fraction: int) -> Any:
    """What a layer reads: a cast, and in an integer run the codes of it."""
    seen = cast(x, word, fraction)
    if _IN_INTEGERS.get() and not isinstance(seen, Codes):
        return Codes((seen * 2.0**fraction).to(torch.int64), fraction)
    return seen


def run_in_integers(model: nn.Module, *inputs: Any) -> Tensor:
    """One run of a network of fixed-point layers in int64: ``value = code / 2**fraction``.

    Float32, to be compared bit for bit with ``model(*inputs)``. Raises ``InputError`` for a torch
    function that has no integer form here (a softmax, a norm that was left in floats), and where
    sums need more than the 24 bits that the emulation has.
    """
    with torch.inference_mode(), in_integers():
        out = model(*inputs)
    if not isinstance(out, Codes):
        raise InputError("the network's output comes from no fixed-point layer")
    return out.floats()


class Codes:
    """``values / 2**fraction`` with int64 ``values``; torch's functions on it stay in integers."""

    def __init__(self, values: Tensor, fraction: int, limit: int = EXACT) -> None:
        self.values, self.fraction = values, fraction
        if values.numel() and int(values.abs().max()) > limit:
            raise InputError(f"codes beyond {limit}: float32 would not hold their sums exactly")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        """Integer forms of torch's functions; see `_FUNCTIONS`."""
        rule = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if rule is None:
            name = getattr(func, "__name__", func)
            raise InputError(f"{name} has no integer form: this network cannot run in integers")
        return rule(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """Methods as functions of the same name, ``shape`` and ``ndim`` of the codes."""
        if name in ("shape", "ndim", "size", "dim"):
            return getattr(self.values, name)
        if name in _FUNCTIONS:
            return lambda *args, **kwargs: _FUNCTIONS[name](self, *args, **kwargs)
        raise AttributeError(f"{name} has no integer form")

    def __add__(self, other: Any) -> Codes:
        return _add(self, other)

    def __getitem__(self, at: Any) -> Codes:
        return Codes(self.values[at], self.fraction)

    def floats(self) -> Tensor:
        """The numbers in float32, exactly."""
        return self.values.to(torch.float32) * 2.0**-self.fraction

    def at(self, fraction: int, limit: int = EXACT) -> Codes:
        """The same numbers with at least as many bits behind the point."""
        return Codes(self.values << (fraction - self.fraction), fraction, limit)

    def cast(self, word: Word, fraction: int) -> Codes:
        """Into a word: one shift, with one addition where it rounds, then the overflow."""
        shift, v = self.fraction - fraction, self.values
        if shift <= 0:
            v = v << -shift
        else:
            v = (v + ((1 << (shift - 1)) if word.rounding == "round" else 0)) >> shift
        return Codes(word.fit(v), fraction)

    def product(self, weight: Codes, multiply: Callable[[Tensor, Tensor], Tensor], hot: int) -> Any:
        """``multiply`` of both sides' codes; with ``hot`` by signed digits, shifts and sums alone.

        Raises ``InputError`` where the sum of absolute products leaves float32's exact range.
        """
        fraction = self.fraction + weight.fraction
        # In whichever order: no part of a sum is larger than the sum of magnitudes.
        Codes(multiply(self.values.abs(), weight.values.abs()), fraction, EXACT // 2)
        if hot:
            # A weight's planes are -1, 0 and 1: adding, leaving out, subtracting.
            planes = digits(weight.values, int(weight.values.abs().max()).bit_length() + 1)
            total = sum(multiply(self.values, p) << e for e, p in enumerate(planes) if p.any())
            values: Any = total if isinstance(total, Tensor) else multiply(self.values, planes[0])
        else:
            values = multiply(self.values, weight.values)
        return Codes(values, fraction)


def windows(x: Tensor, kernel: Any, stride: Any, dilation: Any) -> Tensor:
    """``(n, c, *spatial)`` to ``(n, c, *places, *kernel)``, a view."""
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    return x


def convolution(stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """A whole-number convolution ``(x, weight) -> y`` with zero padding of that geometry."""

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        kernel = weight.shape[2:]
        seen = windows(padded(x, padding, kernel, dilation), kernel, stride, dilation)
        places = seen.shape[2 : 2 + len(kernel)]
        # (n, groups, places, taps) by (groups, outputs, taps)
        seen = seen.unflatten(1, (groups, -1)).movedim(2, 2 + len(kernel))
        seen = seen.flatten(-1 - len(kernel)).flatten(2, 1 + len(kernel))
        taps = weight.flatten(1).unflatten(0, (groups, -1))
        y = seen @ taps.transpose(1, 2)
        return y.transpose(2, 3).flatten(1, 2).unflatten(-1, places)

    return multiply


def padded(x: Tensor, padding: Any, kernel: Any, dilation: Any) -> Tensor:
    """``(n, c, *spatial)`` with the zeros around it that a convolution of that geometry sees."""
    if padding == "valid":
        return x
    sides: list[int] = []
    for i in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[i] * (kernel[i] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [padding[i], padding[i]]
    return F.pad(x, sides)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _add(a: Any, b: Any, *, alpha: int = 1) -> Codes:
    if not (isinstance(a, Codes) and isinstance(b, Codes)) or alpha != 1:
        raise InputError("a sum of codes and floats has no integer form")
    fraction = max(a.fraction, b.fraction)
    return Codes(a.at(fraction).values + b.at(fraction).values, fraction)


def _clamped(x: Codes, low: float, high: float) -> Codes:
    ends = [v * 2.0**x.fraction for v in (low, high)]
    if any(e != int(e) for e in ends):
        raise InputError(f"{low} to {high} are no codes with {x.fraction} bits behind the point")
    return Codes(x.values.clamp(int(ends[0]), int(ends[1])), x.fraction)


def _mean(x: Codes, dim: Any = None, keepdim: bool = False, **_: Any) -> Codes:
    dims = tuple(range(x.values.ndim)) if dim is None else dim
    total = x.values.sum(dims, keepdim=keepdim)
    return _divided(total, x.fraction, x.values.numel() // max(1, total.numel()))


def _divided(total: Tensor, fraction: int, by: int) -> Codes:
    if by & (by - 1):
        raise InputError(f"a mean of {by} numbers, no power of two, has no integer form")
    return Codes(total, fraction + by.bit_length() - 1)


def _pool_all(x: Codes, output_size: Any) -> Codes:
    if _pair(output_size) != (1, 1):
        raise InputError("adaptive pooling to more than one place has no integer form")
    return _mean(x, (-2, -1), True)


def _average(x: Codes, kernel_size: Any, stride: Any = None, padding: Any = 0, *_: Any) -> Codes:
    kernel = _pair(kernel_size)
    padded = F.pad(x.values, [p for p in reversed(_pair(padding)) for _ in (0, 1)])
    seen = windows(padded, kernel, _pair(stride or kernel), (1, 1))
    return _divided(seen.sum((-2, -1)), x.fraction, kernel[0] * kernel[1])


def _largest(
    x: Codes,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Codes:
    if ceil_mode or return_indices:
        raise InputError("max pooling with ceil_mode or indices has no integer form")
    sides = [p for p in reversed(_pair(padding)) for _ in (0, 1)]
    padded = F.pad(x.values, sides, value=-EXACT)
    kernel = _pair(kernel_size)
    seen = windows(padded, kernel, _pair(stride or kernel), _pair(dilation))
    return Codes(seen.amax((-2, -1)), x.fraction)


def _moved(name: str) -> Any:
    return lambda x, *args, **kwargs: Codes(getattr(x.values, name)(*args, **kwargs), x.fraction)


def _joined(parts: Any, dim: int = 0) -> Codes:
    fraction = max(p.fraction for p in parts)
    return Codes(torch.cat([p.at(fraction).values for p in parts], dim), fraction)


_FUNCTIONS: dict[str, Any] = {
    **{
        name: _moved(name)
        for name in (
            "flatten",
            "reshape",
            "view",
            "permute",
            "transpose",
            "squeeze",
            "unsqueeze",
            "contiguous",
            "unflatten",
        )
    },
    "relu": lambda x, inplace=False: Codes(x.values.clamp(min=0), x.fraction),
    "relu6": lambda x, inplace=False: _clamped(x, 0, 6),
    "hardtanh": lambda x, low=-1.0, high=1.0, inplace=False, **k: _clamped(
        x, k.get("min_val", low), k.get("max_val", high)
    ),
    "dropout": lambda x, *_, **__: x,
    "add": _add,
    "cat": _joined,
    "mean": _mean,
    "adaptive_avg_pool2d": _pool_all,
    "avg_pool2d": _average,
    "max_pool2d": _largest,
}
"""torch's functions and methods by name; what is not here is refused by name."""
