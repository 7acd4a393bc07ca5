"""The codes of floating-point formats: numbers to bits and back, exactly.

IEEE 754-2019, section 3.4, and the special values of the OCP formats (`floats.Specials`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.analysis.floats import Float
from paredown.analysis.rounding import power_of_two
from paredown.errors import InputError


def encode(form: Float, x: Tensor) -> Tensor:
    """The codes (int64) of numbers of a format; `Float.round` first. A NaN is the quiet one.

    Raises ``InputError`` for a value that the format does not hold.
    """
    v, s = x.detach().to(torch.float64), form.significand
    finite = torch.isfinite(v)
    size = torch.where(finite, v.abs(), 0.0)
    m, e = torch.frexp(size)
    exponent = (e.to(torch.int64) - 1).clamp(min=form.smallest_exponent)
    units = m * power_of_two((e - exponent + s).clamp(min=-1000))
    normal = units >= 2.0**s
    low = ~normal & (units > 0) if not form.subnormals else torch.zeros_like(normal)
    if bool(((units != units.trunc()) | (size > form.largest) | low).any()):
        raise InputError("a value is not one of the format's: round it first")
    field = torch.where(normal, exponent + form.offset, 0)
    code = (field << s) + units.to(torch.int64) - torch.where(normal, 1 << s, 0)
    code = torch.where(finite, code, _special(form, v))
    sign = torch.signbit(v).to(torch.int64) << (form.bits - 1)
    if form.specials == "unsigned-zero":
        sign = torch.where((code == 0) | v.isnan(), 0, sign)
    return code | sign


def _special(form: Float, v: Tensor) -> Tensor:
    """The code without sign where ``v`` is NaN or infinite."""
    if bool(torch.isinf(v).any()) and form.specials != "ieee":
        raise InputError("the format holds no infinity: round with saturation first")
    if bool(v.isnan().any()) and form.specials == "none":
        raise InputError("the format holds no NaN")
    top = (2**form.exponent - 1) << form.significand
    if form.specials == "ieee":
        nan = top | (1 << max(form.significand - 1, 0))
        return torch.where(v.isnan(), nan, top)
    nan = top | (2**form.significand - 1) if form.specials == "nan" else 1 << (form.bits - 1)
    return torch.full_like(v, nan, dtype=torch.int64)


def decode(form: Float, code: Tensor) -> Tensor:
    """The numbers (float64) of integer codes; bits above the format's are ignored."""
    c, s = code.to(torch.int64), form.significand
    field, units = (c >> s) & (2**form.exponent - 1), c & (2**s - 1)
    whole = torch.where(field > 0, units + (1 << s), units if form.subnormals else 0)
    y = whole.to(torch.float64) * power_of_two(field.clamp(min=1) - form.offset - s)
    if form.specials == "ieee":
        special = torch.where(units == 0, float("inf"), float("nan")).to(torch.float64)
        y = torch.where(field == 2**form.exponent - 1, special, y)
    elif form.specials == "nan":
        nan = 2 ** (form.bits - 1) - 1
        y = torch.where((c & nan) == nan, float("nan"), y)
    minus = ((c >> (form.bits - 1)) & 1).to(torch.bool)
    if form.specials == "unsigned-zero":
        return torch.where(minus, torch.where(y == 0, float("nan"), -y), y)
    return torch.where(minus, -y, y)


def numbers(form: Float) -> Tensor:
    """Every finite number of a format of up to 20 bits, ascending, zero once (float64)."""
    if form.bits > 20:
        raise InputError(f"a format of {form.bits} bits has too many numbers to list")
    every = decode(form, torch.arange(2**form.bits))
    return torch.unique(every[torch.isfinite(every)] + 0.0)
