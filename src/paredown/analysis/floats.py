"""Binary floating point of any width, emulated in float32 or float64 to the bit.

After Pychop (Carson and Chen 2025, arXiv:2504.07835) and chop (Higham and Pranesh 2019,
doi:10.1137/19M1251308): a value is split into significand and exponent, scaled so that the format's
neighbours are whole numbers, rounded as asked, and scaled back.

Deviations: a value that the format holds stays put in every mode; NaN stays NaN where a format has
none, so that a failed computation shows. Limits: a sum inside an operator is not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from paredown.analysis.rounding import Rounding, power_of_two, rounded
from paredown.errors import InputError

Specials = Literal["ieee", "nan", "unsigned-zero", "none"]
"""What the largest exponent stands for.

``ieee`` infinities and NaN; ``nan`` numbers, and NaN where all bits are set (OCP e4m3fn);
``unsigned-zero`` numbers, with NaN in place of minus zero and the bias larger by one (fnuz);
``none`` numbers alone (OCP fp6 and fp4).
"""

_TINY = -64
"""Exponent below which a value is as far from the next number as any: keeps the scale in range."""


@dataclass(frozen=True)
class Float:
    """Binary floating point: a sign, ``exponent`` bits and ``significand`` stored bits.

    Without ``subnormals`` a result below the smallest normal number becomes a signed zero in every
    mode, as CPUs flush it. With ``saturate`` what lies beyond `largest`, infinities included,
    becomes it (the saturating conversion of OCP FP8); otherwise it overflows as IEEE 754, section
    7.4, says: to infinity (NaN where there is none) by rounding to nearest, or by a directed mode
    that points there. ``bias`` None is the usual one, ``2**(exponent - 1) - 1``.
    """

    exponent: int
    significand: int
    subnormals: bool = True
    saturate: bool = False
    specials: Specials = "ieee"
    bias: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.exponent <= 11 or not 0 <= self.significand <= 52:
            raise InputError(
                "a float has 1 to 11 exponent and 0 to 52 significand bits, "
                f"got {self.exponent} and {self.significand}"
            )
        if self.specials not in get_args(Specials):
            raise InputError(f"specials is one of {', '.join(get_args(Specials))}")
        if self.specials == "ieee" and self.exponent < 2:
            raise InputError("one exponent bit leaves no number beside infinity: use specials=none")
        if self.specials == "nan" and not self.significand:
            raise InputError("specials=nan needs a significand bit to tell NaN from a number")
        if not (self.smallest_exponent >= -1022 and self.largest_exponent <= 1023):
            raise InputError("its exponents do not fit into float64's")

    @property
    def bits(self) -> int:
        """Bits of a code: sign, exponent, significand."""
        return 1 + self.exponent + self.significand

    @property
    def offset(self) -> int:
        """What is added to an exponent to make its field: the bias."""
        usual = 2 ** (self.exponent - 1) - (0 if self.specials == "unsigned-zero" else 1)
        return usual if self.bias is None else self.bias

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.offset

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest number."""
        return 2**self.exponent - (2 if self.specials == "ieee" else 1) - self.offset

    @property
    def largest(self) -> float:
        """The largest finite number."""
        # One significand is NaN's at the largest exponent of ``nan`` formats.
        below_two = 2.0 ** (1 - self.significand if self.specials == "nan" else -self.significand)
        return 2.0**self.largest_exponent * (2.0 - below_two)

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        down = self.significand if self.subnormals else 0
        return 2.0 ** (self.smallest_exponent - down)

    def fits(self, other: Float) -> bool:
        """Whether ``other`` holds every finite number of this format."""
        low = self.smallest_exponent - (self.significand if self.subnormals else 0)
        return (
            self.significand <= other.significand
            and self.largest_exponent <= other.largest_exponent
            and low >= other.smallest_exponent - other.significand
        )

    def round(
        self,
        x: Tensor,
        rounding: Rounding = "nearest-even",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``x`` (any shape, float) in this format's numbers.

        The result is float64 where ``x`` is or where the format does not fit into float32, else
        float32: exact either way.
        """
        wide = x.dtype == torch.float64 or not self.fits(FLOAT32)
        v = x.detach().to(torch.float64 if wide else torch.float32)
        finite = torch.isfinite(v)
        m, e = torch.frexp(torch.where(finite, v, 0.0))
        unit = e - (1 + self.significand)
        least = self.smallest_exponent - self.significand
        if self.subnormals:
            unit = unit.clamp(min=least)
        up = power_of_two((e - unit).clamp(min=_TINY), v.dtype, normal=True)
        # The distance of two numbers is a normal number of the working format in most formats.
        plain = self.subnormals and least >= (-1022 if wide else -126)
        y = rounded(m * up, rounding, generator) * power_of_two(unit, v.dtype, normal=plain)
        if not self.subnormals:
            y = torch.where(y.abs() < self.smallest, torch.copysign(torch.zeros_like(y), v), y)
        y = torch.where(y.abs() > self.largest, self._overflow(v, rounding), y)
        y = torch.where(finite, y, self._infinite(v))
        return y + 0.0 if self.specials == "unsigned-zero" else y

    def _overflow(self, v: Tensor, rounding: Rounding) -> Tensor:
        """What a finite value whose rounding lies beyond `largest` becomes."""
        top = torch.tensor(self.largest, dtype=v.dtype, device=v.device)
        if self.saturate or self.specials == "none" or rounding in ("zero", "odd"):
            return torch.copysign(top, v)
        beyond = torch.full_like(top, float("inf") if self.specials == "ieee" else float("nan"))
        if rounding == "up":
            return torch.where(v > 0, beyond, -top)
        if rounding == "down":
            return torch.where(v > 0, top, -beyond)
        return torch.copysign(beyond, v)

    def _infinite(self, v: Tensor) -> Tensor:
        if self.saturate or self.specials == "none":
            return v.clamp(-self.largest, self.largest)
        return v if self.specials == "ieee" else torch.full_like(v, float("nan"))


FLOAT32 = Float(8, 23)
