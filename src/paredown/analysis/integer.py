"""Softmax, GELU and layer norm in integers alone: shifts, additions, products, whole divisions.

Two families: I-BERT's second-order polynomials (Kim et al. 2021, arXiv:2101.01321, sections 3.4 to
3.6) and I-ViT's powers of two by shifts (Li and Gu 2023, arXiv:2207.01405, section 3.3: Shiftmax,
ShiftGELU, I-LayerNorm). A value is ``scale * i`` with an int64 tensor ``i``; scales are Python
numbers that only choose integer constants beforehand. No tensor here is ever a float.

Deviations: exponents keep 2**-16 at least (I-ViT's largest shift is a setting per model), and
divisions round down as shifts do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXP_BITS = 16
"""An exponential of 0 is about ``2**EXP_BITS / scale``: the smallest one kept is 2**-EXP_BITS."""


def shift_exp(i: Tensor, scale: float) -> tuple[Tensor, float]:
    """``exp(scale * i)`` for ``i <= 0``: ``(integers, their scale)`` (I-ViT, equations 8 to 12).

    ``log2(e)`` is 1.0111 in binary; the fraction of the power of two is linear.
    """
    whole = max(1, round(1 / scale))
    p = i + (i >> 1) - (i >> 4)
    q = -p // whole
    rest = -p - q * whole
    value = whole - (rest >> 1)
    return (value << EXP_BITS) >> q.clamp(max=EXP_BITS + 31), 1 / (whole << EXP_BITS)


def poly_exp(i: Tensor, scale: float) -> tuple[Tensor, float]:
    """``exp(scale * i)`` for ``i <= 0`` (I-BERT, algorithm 2): a parabola and a shift."""
    ln2 = max(1, math.floor(math.log(2) / scale))
    q = -i // ln2
    p = i + q * ln2
    a, b, c = 0.3585, 1.353, 0.344
    value = (p + math.floor(b / scale)) ** 2 + math.floor(c / (a * scale**2))
    return value >> q.clamp(max=62), a * scale**2


def softmax(i: Tensor, scale: float, bits: int = 8, *, exp: str = "shift") -> tuple[Tensor, float]:
    """Softmax over the last dimension as ``bits``-bit codes, scale ``2**-(bits - 1)``.

    ``exp`` is ``shift`` (Shiftmax) or ``poly`` (I-BERT's).
    """
    below = i - i.amax(-1, keepdim=True)
    value, _ = (shift_exp if exp == "shift" else poly_exp)(below, scale)
    total = value.sum(-1, keepdim=True)
    # Room for the product: numerators take at most 31 bits.
    excess = max(0, int(total.max()).bit_length() - 31)
    value, total = value >> excess, (total >> excess).clamp(min=1)
    one = 1 << (bits - 1)
    return ((value * one + (total >> 1)) // total).clamp(max=one), 1 / one


def shift_gelu(i: Tensor, scale: float, bits: int = 8) -> tuple[Tensor, float]:
    """``x sigmoid(1.702 x)`` (I-ViT, equation 16): 1.702 is 1.1011 in binary."""
    p = i + (i >> 1) + (i >> 3) + (i >> 4)
    top = p.amax(-1, keepdim=True).clamp(min=0)
    mine, _ = shift_exp(p - top, scale)
    other, _ = shift_exp(-top, scale)
    one = 1 << (bits - 1)
    share = mine * one // (mine + other).clamp(min=1)
    return i * share, scale / one


def poly_gelu(i: Tensor, scale: float) -> tuple[Tensor, float]:
    """GELU by a parabola for the error function (I-BERT, algorithm 1)."""
    a, b, c = -0.2888, -1.769, 1.0
    s = scale / math.sqrt(2)
    end = math.floor(-b / s)
    near = i.abs().clamp(max=end)
    unit = a * s**2
    erf = i.sign() * ((near - end) ** 2 + math.floor(c / unit))
    one = math.floor(1 / unit)
    return i * (erf + one), scale * unit / 2


def root(n: Tensor) -> Tensor:
    """The whole square root of int64 ``n >= 0`` below 2**62, by Newton's rule from above."""
    bits = torch.zeros_like(n)
    rest = n
    for step in (32, 16, 8, 4, 2, 1):
        large = (rest >> step) > 0
        bits = bits + large * step
        rest = torch.where(large, rest >> step, rest)
    x = torch.ones_like(n) << ((bits >> 1) + 1)
    for _ in range(40):
        better = ((x + n // x) >> 1).clamp(min=1)
        if bool((better >= x).all()):
            break
        x = torch.minimum(x, better)
    return torch.where(n > 0, x, torch.zeros_like(n))


def normalised(i: Tensor, bits: int = 10) -> tuple[Tensor, float]:
    """``(x - mean) / deviation`` over the last dimension, scale ``2**-bits`` (I-LayerNorm).

    The input's own scale cancels.
    """
    n = i.shape[-1]
    total = i.sum(-1, keepdim=True)
    off = i * n - total  # n times the deviation from the mean: no rounding yet
    variance = (off * off).sum(-1, keepdim=True) // n
    return (off << bits) // root(variance).clamp(min=1), 2.0**-bits


def dyadic(factor: float, bits: int = 15) -> tuple[int, int]:
    """``(m, shift)`` with ``m / 2**shift`` nearest to ``factor > 0``, ``m`` of ``bits``."""
    mantissa, exponent = math.frexp(factor)
    m = round(mantissa * 2**bits)
    shift = bits - exponent
    return (m, shift) if shift >= 0 else (m << -shift, 0)


def rescaled(i: Tensor, factor: float, bits: int | None = None) -> Tensor:
    """``round(i * factor)`` by one product and one shift; cut to signed ``bits`` where given."""
    m, shift = dyadic(factor)
    shift = min(shift, 62)
    out = (i * m + ((1 << shift) >> 1)) >> shift
    if bits is None:
        return out
    top = (1 << (bits - 1)) - 1
    return out.clamp(-top, top)


def log2_codes(value: Tensor, total: Tensor, bits: int) -> Tensor:
    """``round(log2(total / value))`` of whole numbers, cut at ``2**bits`` for what is smaller.

    The log-int-softmax of FQ-ViT (Lin et al. 2022, arXiv:2111.13824, section 3.2): the position of
    the quotient's first bit, and the bit behind it for rounding.
    """
    quotient = (total + (value >> 1)) // value.clamp(min=1)
    found = torch.zeros_like(quotient)
    rest = quotient
    for step in (32, 16, 8, 4, 2, 1):
        large = (rest >> step) > 0
        found = found + large * step
        rest = torch.where(large, rest >> step, rest)
    half = (quotient >> (found - 1).clamp(min=0)) & (found > 0)
    codes = found + (half & 1)
    return torch.where(value > 0, codes, torch.full_like(codes, 1 << bits)).clamp(max=1 << bits)


def shifted_product(codes: Tensor, values: Tensor, bits: int, room: int = 15) -> Tensor:
    """``sum_j 2**-codes[..., i, j] values[..., j, k]`` in units of ``2**-room``: shifts and adds.

    A code of ``2**bits`` or more stands for 0.
    """
    wide = values.unsqueeze(-3) << room
    moved = wide >> codes.clamp(max=62).unsqueeze(-1)
    kept = (codes < (1 << bits)).unsqueeze(-1)
    return torch.where(kept, moved, torch.zeros_like(moved)).sum(-2)
