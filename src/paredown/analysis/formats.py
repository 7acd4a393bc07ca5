"""Number formats by name: floats, fixed point and integers, blocks under a shared power of two.

After Pychop (Carson and Chen 2025, arXiv:2504.07835) and OCP Microscaling Formats 1.0. Each format
has ``bits``, ``largest`` and ``round(x, rounding, generator)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.analysis.floats import FLOAT32, Float
from paredown.analysis.rounding import Rounding, power_of_two, rounded
from paredown.errors import InputError


@dataclass(frozen=True)
class Fixed:
    """Fixed point: multiples of ``2**-fraction`` with ``integer`` bits before the point.

    Two's complement with one more bit when ``signed``; ``symmetric`` leaves the most negative code
    out. Beyond the range it saturates, or wraps around where not ``saturate``. No minus zero.
    """

    integer: int
    fraction: int = 0
    signed: bool = True
    symmetric: bool = False
    saturate: bool = True

    def __post_init__(self) -> None:
        if self.integer + self.fraction < 1 or self.integer + self.fraction > 52:
            raise InputError(
                f"a fixed point holds 1 to 52 bits, got {self.integer} + {self.fraction}"
            )
        if self.symmetric and not (self.signed and self.saturate):
            raise InputError("a symmetric fixed point is signed and saturates")

    @property
    def bits(self) -> int:
        """Bits of a code, the sign included."""
        return self.integer + self.fraction + self.signed

    @property
    def codes(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        top = 2 ** (self.integer + self.fraction) - 1
        return (0 if not self.signed else -top - (not self.symmetric)), top

    @property
    def largest(self) -> float:
        """The largest number."""
        return self.codes[1] * 2.0**-self.fraction

    def round(
        self,
        x: Tensor,
        rounding: Rounding = "nearest-even",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``x`` (any shape, float) in this format's numbers; NaN stays.

        The result is float64 where ``x`` is or where the codes have over 24 bits, else float32.
        """
        low, top = self.codes
        steps = 2.0**self.fraction
        wide = x.dtype == torch.float64 or self.integer + self.fraction > 24
        v = x.detach().to(torch.float64 if wide else torch.float32)
        q = rounded(v if steps == 1 else v * steps, rounding, generator)
        if self.saturate:
            q = q.clamp(low, top)
        else:
            q = torch.remainder(q - low, float(top - low + 1)) + low
        # Adding 0 turns minus zero into zero.
        return (q if steps == 1 else q / steps) + 0.0


@dataclass(frozen=True)
class Block:
    """Blocks of ``size`` values along the last dimension, one power of two shared by each.

    OCP Microscaling Formats 1.0, section 6.3: the scale is the largest power of two in the block
    over that of the element, an element rounds and saturates.
    """

    element: Float | Fixed
    size: int = 32

    @property
    def bits(self) -> float:
        """Bits of a value, its share of the 8-bit scale included."""
        return self.element.bits + 8 / self.size

    def round(
        self,
        x: Tensor,
        rounding: Rounding = "nearest-even",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``x`` in this format's numbers, a shorter block at the end; float32 or float64."""
        v = x.detach().to(torch.float64)
        columns = v.shape[-1]
        blocks = torch.nn.functional.pad(v, (0, -columns % self.size)).unflatten(
            -1, (-1, self.size)
        )
        top = torch.frexp(torch.nan_to_num(blocks).abs().amax(-1, keepdim=True))[1].to(torch.int64)
        own = torch.frexp(torch.tensor(self.element.largest, dtype=torch.float64))[1]
        # An E8M0 scale reaches from 2**-127 to 2**127.
        exponent = (top - int(own)).clamp(-127, 127)
        inside = (blocks * power_of_two(-exponent)).clamp(
            -self.element.largest, self.element.largest
        )
        y = self.element.round(inside, rounding, generator) * power_of_two(exponent)
        y = y.flatten(-2)[..., :columns]
        return y if x.dtype == torch.float64 else y.to(torch.float32)


Format = Float | Fixed | Block

FORMATS: dict[str, Format] = {
    "float64": Float(11, 52),
    "float32": FLOAT32,
    "tf32": Float(8, 10),
    "bfloat16": Float(8, 7),
    "float16": Float(5, 10),
    "e5m2": Float(5, 2),
    "e4m3": Float(4, 3),
    "e4m3fn": Float(4, 3, specials="nan"),
    "e4m3fnuz": Float(4, 3, specials="unsigned-zero"),
    "e5m2fnuz": Float(5, 2, specials="unsigned-zero"),
    "e3m2": Float(3, 2, specials="none"),
    "e2m3": Float(2, 3, specials="none"),
    "e2m1": Float(2, 1, specials="none"),
    "int8": Fixed(7),
    "int4": Fixed(3),
    "mxfp8": Block(Float(4, 3, specials="nan", saturate=True)),
    "mxfp6": Block(Float(3, 2, specials="none")),
    "mxfp4": Block(Float(2, 1, specials="none")),
    "mxint8": Block(Fixed(1, 6, symmetric=True)),
}
"""The formats that have names; `e4m3` is IEEE-like (largest 240), `e4m3fn` OCP's (448)."""
