"""Dual-tree complex wavelets, one level in two dimensions (Kingsbury 2001, ACHA 10(3), 234-253).

The first level of the dual tree is undecimated: a low map of full size and six complex bands of
half the sides, oriented at about 15, 45, 75, 105, 135 and 165 degrees. Filters: near-symmetric
13/19 taps ("near_sym_b"); borders are mirrored half-sample, as in the public implementations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError

# First halves up to the centre tap, as whole numbers over their sum: both filters are rational.
LOW13 = (-9, 0, 114, -240, -247, 1520, 2844)
LOW19 = (81, 0, -1539, -2160, 8208, 27360, -63816, -59280, 343786, 641600)
DENOMINATORS: dict[tuple[int, ...], int] = {LOW13: 5120, LOW19: 1146880}


def lowpass(half: tuple[int, ...]) -> Tensor:
    """The symmetric filter of a half, of unit gain."""
    taps = torch.tensor(half + half[-2::-1], dtype=torch.float64)
    return taps / DENOMINATORS[half]


def highpass(low: Tensor) -> Tensor:
    """A low-pass filter moved to the highest frequency: odd taps from the centre negated."""
    offset = torch.arange(low.shape[0]) - low.shape[0] // 2
    return low * (1 - 2 * (offset % 2))


class DualTree(nn.Module):
    """The transform and its inverse; no parameters, and ``inverse(*dual_tree(x))`` is ``x``."""

    def __init__(self) -> None:
        super().__init__()
        for name, taps in (
            ("low", lowpass(LOW13)),
            ("high", highpass(lowpass(LOW19))),
            ("back_low", lowpass(LOW19)),
            ("back_high", highpass(lowpass(LOW13))),
        ):
            self.register_buffer(name, taps.float(), persistent=False)

    low: Tensor
    high: Tensor
    back_low: Tensor
    back_high: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, channels, h, w)`` to the low map, of that shape, and the bands.

        Bands are ``(2, batch, channels, 6, h / 2, w / 2)``, real and imaginary first. Raises
        ``InputError`` for odd sides.
        """
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise InputError(f"the dual tree takes even sides, got {x.shape[-2]}x{x.shape[-1]}")
        smooth, rough = filtered(x, self.low, 3), filtered(x, self.high, 3)
        ends = [
            to_complex(filtered(smooth, self.high, 2)),
            to_complex(filtered(rough, self.high, 2)),
            to_complex(filtered(rough, self.low, 2)),
        ]
        rising, falling = [e[0] for e in ends], [e[1] for e in ends]
        return filtered(smooth, self.low, 2), torch.stack(rising + falling[::-1], 3)

    def inverse(self, low: Tensor, bands: Tensor) -> Tensor:
        """The map that these came from: ``(batch, channels, h, w)``."""
        horizontal, diagonal, vertical = (
            from_complex(bands[:, :, :, i], bands[:, :, :, 5 - i]) for i in range(3)
        )
        smooth = filtered(low, self.back_low, 2) + filtered(horizontal, self.back_high, 2)
        rough = filtered(vertical, self.back_low, 2) + filtered(diagonal, self.back_high, 2)
        return filtered(smooth, self.back_low, 3) + filtered(rough, self.back_high, 3)


def filtered(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """A map filtered along its height (``dim`` 2) or width (3), mirrored at the borders."""
    channels, length, reach = x.shape[1], x.shape[dim], taps.shape[0] // 2
    x = x.index_select(dim, mirrored(length, reach, x.device))
    shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
    weight = taps.to(x.dtype).reshape(shape).expand(channels, -1, -1, -1)
    return F.conv2d(x, weight, groups=channels)


def mirrored(length: int, reach: int, device: torch.device) -> Tensor:
    """Positions from ``-reach`` on, folded back at both ends: b a | a b c | c b and again."""
    at = torch.arange(-reach, length + reach, device=device) % (2 * length)
    return torch.where(at < length, at, 2 * length - 1 - at)


def to_complex(y: Tensor) -> tuple[Tensor, Tensor]:
    """Each 2x2 of samples to two complex numbers, ``(2, batch, channels, h / 2, w / 2)`` each."""
    y = y * 0.5**0.5
    a, b = y[..., 0::2, 0::2], y[..., 0::2, 1::2]
    c, d = y[..., 1::2, 0::2], y[..., 1::2, 1::2]
    return torch.stack((a - d, b + c)), torch.stack((a + d, b - c))


def from_complex(first: Tensor, second: Tensor) -> Tensor:
    """The inverse of :func:`to_complex`."""
    (p, q), (r, s) = (first * 0.5**0.5).unbind(0), (second * 0.5**0.5).unbind(0)
    top = torch.stack((p + r, q + s), -1).flatten(-2)
    bottom = torch.stack((q - s, r - p), -1).flatten(-2)
    return torch.stack((top, bottom), -2).flatten(-3, -2)
