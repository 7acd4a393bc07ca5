"""Rounding to whole numbers in every mode, exactly, and exact powers of two.

The modes are those of IEEE 754-2019, section 4.3, and of Pychop (Carson and Chen 2025,
arXiv:2504.07835); its modes 6 and 10 are ``coin`` here.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from paredown.errors import InputError

Rounding = Literal[
    "nearest-even",
    "nearest-zero",
    "nearest-away",
    "up",
    "down",
    "zero",
    "odd",
    "stochastic",
    "coin",
]
"""How a value between two neighbours is rounded.

``nearest-*`` differ in ties; ``up`` and ``down`` go to plus and minus infinity; ``odd`` takes the
neighbour whose last bit is 1; ``stochastic`` takes each in proportion to how near it is, ``coin``
either with probability 1/2. A value of the format stays put in every mode.
"""

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def rounded(
    x: Tensor, rounding: Rounding = "nearest-even", generator: torch.Generator | None = None
) -> Tensor:
    """Whole numbers next to ``x`` (any shape, float), in its dtype; NaN and infinities stay.

    Raises ``InputError`` for an unknown mode.
    """
    if rounding == "nearest-even":
        return torch.round(x)
    if rounding == "up":
        return torch.ceil(x)
    if rounding == "down":
        return torch.floor(x)
    if rounding == "zero":
        return torch.trunc(x)
    if rounding not in ROUNDINGS:
        raise InputError(f"unknown rounding {rounding!r}: one of {', '.join(ROUNDINGS)}")
    # The magnitude's fraction is exact: no addition of 1/2, which would itself be rounded.
    size = x.abs()
    low = torch.floor(size)
    rest = size - low
    if rounding == "nearest-zero":
        above = rest > 0.5
    elif rounding == "nearest-away":
        above = rest >= 0.5
    elif rounding == "odd":
        above = (rest > 0) & (low % 2 == 0)
    else:
        draw = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        above = draw < rest if rounding == "stochastic" else (rest > 0) & (draw < 0.5)
    return torch.copysign(low + above, x)


def power_of_two(
    exponent: Tensor, dtype: torch.dtype = torch.float64, *, normal: bool = False
) -> Tensor:
    """``2 ** exponent`` exactly, subnormals included; 0 below them, infinity above.

    ``normal`` promises that no exponent lies below the smallest normal number's or is too large.
    """
    bias, bits, whole = (
        (1023, 52, torch.int64) if dtype == torch.float64 else (127, 23, torch.int32)
    )
    if normal:
        return ((exponent.to(whole) + bias) << bits).view(dtype)
    e = exponent.to(torch.int64).clamp(-bias - bits, bias + 1)
    large = (e + bias).clamp(min=0) << bits
    small = torch.ones_like(e) << (e + bias - 1 + bits).clamp(0, bits - 1)
    code = torch.where(e > -bias, large, torch.where(e < 1 - bias - bits, 0, small))
    return code.to(whole).view(dtype)
