"""Training in fixed point: casts with gradients for values and binary points (QFX).

Dai et al. 2024, arXiv:2401.17544, section 3: the binary point is a real number, rounded forwards,
with the gradient passed straight through both roundings. With ``y`` the cast of ``x`` and ``f``
bits behind the point, ``dy/df = ln 2 * (x - y)`` where ``x`` is in range and ``-ln 2 * y`` where it
saturates, as in learned step sizes (Esser et al. 2020, arXiv:1902.08153, whose scale of the
gradient is taken too).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.runtime.fixed_point import Word, whole
from paredown.runtime.forms_fixed import Numbers
from paredown.techniques.quantize.common import is_conv1d, matrix
from paredown.techniques.quantize.observe import Histogram

RATE = 30.0
"""A binary point moves this many times faster than weights: a short training must move it by 1."""

_REACH = 6
"""How many bits below the whole range are tried for the least error."""


class _Cast(torch.autograd.Function):
    """A tensor in a word, or at the nearest of some levels; gradients for it and for the point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fraction: Tensor, word: Word, levels: Tensor | None) -> Tensor:
        scale = 2.0 ** float(fraction.round())
        raw = x * scale
        if levels is None:
            codes = whole(raw, word.rounding)
            low, high = word.codes
            fitted = word.fit(codes)
        else:
            low, high = float(levels[0]), float(levels[-1])
            codes = raw
            fitted = levels[torch.bucketize(raw, (levels[1:] + levels[:-1]) / 2)]
        y = fitted / scale
        if word.overflow == "saturate" or levels is not None:
            inside = (codes >= low) & (codes <= high)
        else:
            inside = torch.ones_like(x, dtype=torch.bool)
        ctx.save_for_backward(x, y, inside)
        ctx.share = 1 / math.sqrt(x.numel() * max(abs(low), abs(high)))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, y, inside = ctx.saved_tensors
        (grad,) = grads
        through = grad * inside
        point = math.log(2) * ((through * x).sum() - (grad * y).sum())
        return through, point * ctx.share, None, None


def trained_cast(x: Tensor, fraction: Tensor, word: Word, levels: Tensor | None = None) -> Tensor:
    """``x`` in a word with ``round(fraction)`` bits behind the point; both get gradients."""
    return _Cast.apply(x, fraction, word, levels)  # pyright: ignore


def widest(word: Word, peak: float) -> int:
    """The most bits behind the point at which ``peak`` still fits."""
    return math.floor(math.log2(word.codes[1] / peak)) if peak > 0 else 0


def least_error(
    values: Tensor, weights: Tensor | None, word: Word, levels: Tensor | None = None
) -> int:
    """The binary point with the least squared error of ``values``, each ``weights`` times there."""
    first = widest(word, float(values.abs().max()))
    errors: dict[int, float] = {}
    for fraction in range(first - 1, first + _REACH):
        y = _Cast.apply(values, torch.tensor(float(fraction)), word, levels)
        square = (y - values).square().double()  # pyright: ignore
        errors[fraction] = float((square if weights is None else square * weights).sum())
    return min(errors, key=lambda f: errors[f])


class Emulated(nn.Module):
    """A layer in fixed point while it is trained: its constants and binary points are parameters.

    ``numbers`` are the words it starts with. A batch norm is a gain and an offset for each channel,
    its statistics as they are.
    """

    _levels: Tensor

    def __init__(self, layer: Any, numbers: Numbers, learn: bool) -> None:
        super().__init__()
        self.layer = (layer,)  # not a submodule: its tensors are not trained
        self.numbers = numbers
        kernel, offset = constants(layer)
        self.kernel = nn.Parameter(kernel.float().clone())
        self.offset = None if offset is None else nn.Parameter(offset.float().clone())
        start = [numbers.fraction, numbers.weight_fraction, numbers.bias_fraction]
        self.points = nn.Parameter(torch.tensor(start) / RATE, requires_grad=learn)
        vars(self)["_levels"] = numbers.levels().float()

    def forward(self, input: Tensor) -> Tensor:
        """What the form will compute, up to the rounding of sums."""
        n = self.numbers
        at = self.points * RATE
        x = trained_cast(input.float(), at[0], n.word)
        kernel = trained_cast(self.kernel, at[1], Word(n.weight_bits), self._levels)
        offset = self.offset
        if offset is not None:
            offset = trained_cast(offset, torch.minimum(at[2], at[0] + at[1]), Word(n.bits))
        return applied(self.layer[0], x, kernel, offset).to(input.dtype)

    def result(self) -> tuple[Numbers, Tensor, Tensor | None]:
        """The words found, the weight's codes and the bias's values."""
        fraction, weight, bias = (int(v) for v in (self.points.detach() * RATE).round())
        bias = min(bias, fraction + weight)
        n = replace(self.numbers, fraction=fraction, weight_fraction=weight, bias_fraction=bias)
        kernel = _Cast.apply(
            self.kernel.detach(), torch.tensor(float(weight)), Word(n.weight_bits), self._levels
        )
        codes = (kernel * 2.0**weight).round().to(torch.int64)  # pyright: ignore
        if self.offset is None:
            return n, codes, None
        offset = _Cast.apply(self.offset.detach(), torch.tensor(float(bias)), Word(n.bits), None)
        return n, codes, offset  # pyright: ignore


def constants(layer: Any) -> tuple[Tensor, Tensor | None]:
    """``(weight, bias)`` of a linear or convolution; of a batch norm its gain as single taps."""
    if is_norm(layer):
        gain = torch.rsqrt(layer.running_var.detach().float() + layer.eps)
        offset = -layer.running_mean.detach().float() * gain
        if layer.weight is not None:
            gain, offset = gain * layer.weight.detach(), offset * layer.weight.detach()
            offset = offset + layer.bias.detach()
        spatial = 3 if isinstance(layer, nn.BatchNorm3d) else 2
        return gain.reshape(-1, 1, *[1] * spatial), offset
    bias = layer.bias
    return matrix(layer), None if bias is None else bias.detach()


def applied(layer: Any, x: Tensor, kernel: Tensor, offset: Tensor | None) -> Tensor:
    """The layer with other constants."""
    if isinstance(layer, nn.Linear) or is_conv1d(layer):
        return F.linear(x, kernel, offset)
    conv: Any = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[kernel.ndim]
    if is_norm(layer):
        return conv(x, kernel, offset, groups=kernel.shape[0])
    return conv(x, kernel, offset, layer.stride, layer.padding, layer.dilation, layer.groups)


def is_norm(layer: Any) -> bool:
    """Whether a layer is a batch norm whose running statistics make it a gain and an offset."""
    return isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d))


def started(layer: Any, seen: Histogram, numbers: Numbers, start: str) -> Numbers:
    """Words with binary points for what a layer holds and reads: ``range`` or ``error``."""
    signed = seen.low < 0
    word = Word(numbers.bits, signed, numbers.rounding, numbers.overflow)
    kernel, offset = constants(layer)
    weights, biases = Word(numbers.weight_bits), Word(numbers.bits)
    levels = numbers.levels().float()
    if start == "range":
        fraction = widest(word, max(-seen.low, seen.high))
        weight = widest(weights, float(kernel.abs().max()))
        bias = 0 if offset is None else widest(biases, float(offset.abs().max()))
    else:
        bins = len(seen.counts)
        centres = (torch.arange(bins) + 0.5) * (2 * seen.reach / bins) - seen.reach
        fraction = least_error(centres, seen.counts, word) if seen.reach else 0
        weight = least_error(kernel.float(), None, weights, levels)
        bias = 0 if offset is None else least_error(offset.float(), None, biases)
    return replace(
        numbers,
        signed=signed,
        fraction=fraction,
        weight_fraction=weight,
        bias_fraction=min(bias, fraction + weight),
    )
