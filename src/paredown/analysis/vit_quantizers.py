"""The specialised quantizers of vision transformers side by side, and what they are made for.

After the survey of Du et al. 2024 (arXiv:2405.00314): three distributions resist one uniform range
(channels after a layer norm that differ in size, the power law after softmax, the uneven sides
after GELU), and each family of methods answers one of them. Every quantizer here takes a tensor
with channels last and gives back what its codes stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from paredown.runtime.quantized_attention import from_codes, to_codes

Place = Literal["norm", "softmax", "gelu"]
Quantizer = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Method:
    """One published quantizer: where it acts, what it needs, what hardware computes with it."""

    name: str
    paper: str
    places: tuple[Place, ...]
    quantize: Quantizer
    hardware: str
    retraining: bool = False


def uniform(x: Tensor, bits: int, *, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Uniform codes over ``[low, high]`` with a whole zero point."""
    low, high = torch.as_tensor(low), torch.as_tensor(high)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    zero = torch.round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def min_max(x: Tensor, bits: int) -> Tensor:
    """One range from the least to the largest value."""
    return uniform(x, bits, low=x.min(), high=x.max())


def percentile(x: Tensor, bits: int, share: float = 0.999) -> Tensor:
    """One range that leaves ``1 - share`` out at either end."""
    ordered = x.flatten().sort().values
    cut = min(int((1 - share) * len(ordered)), (len(ordered) - 1) // 2)
    return uniform(x, bits, low=ordered[cut], high=ordered[len(ordered) - 1 - cut])


def least_error(x: Tensor, bits: int, steps: int = 40) -> Tensor:
    """The share of the whole range of least squared error (OMSE: Choukroun et al. 2019)."""
    tried = (
        uniform(x, bits, low=x.min() * k / steps, high=x.max() * k / steps)
        for k in range(1, steps + 1)
    )
    return min(tried, key=lambda coded: float((coded - x).square().sum()))


def by_channel(x: Tensor, bits: int) -> Tensor:
    """A range for each channel, folded into one afterwards (RepQ-ViT: Li et al. 2023)."""
    flat = x.flatten(0, -2)
    return uniform(x, bits, low=flat.amin(0), high=flat.amax(0))


def power_of_two(x: Tensor, bits: int, most: int = 3) -> Tensor:
    """One range, doubled up to ``most`` times for wide channels (FQ-ViT: Lin et al. 2022)."""
    flat = x.flatten(0, -2)
    scale = (x.max() - x.min()) / (2**bits - 1)
    zero = torch.round(-x.min() / scale)
    best = torch.zeros_like(flat)
    least = torch.full(flat.shape[1:], float("inf"), dtype=x.dtype)
    for k in range(most + 1):
        step = scale * 2.0 ** (k - most)
        coded = (torch.clamp(torch.round(flat / step) + zero, 0, 2**bits - 1) - zero) * step
        error = (coded - flat).square().sum(0)
        best = torch.where(error < least, coded, best)
        least = torch.minimum(error, least)
    return best.reshape(x.shape)


def logarithmic(x: Tensor, bits: int, kind: str = "log2") -> Tensor:
    """Powers of two (FQ-ViT) or of its root (RepQ-ViT) below the largest value."""
    scale = x.max()
    return from_codes(to_codes(x, scale, bits, kind), scale, bits, kind)


def twin(x: Tensor, bits: int) -> Tensor:
    """Two uniform ranges by one bit of the code (PTQ4ViT: Yuan et al. 2022, section 3.2).

    The second is the first times a power of two, the one of least error. Values of one sign are
    split into small and large ones, others by sign.
    """
    half = 2 ** (bits - 1)
    low, high = float(x.min()), float(x.max())
    best, least = x, float("inf")
    signed = low < 0
    for k in range(12):
        large = high / (half - 1)
        small = large * 2.0**-k
        if signed:
            up = torch.clamp(torch.round(x / large), 0, half - 1) * large
            down = torch.clamp(torch.round(x / small), -half, 0) * small
            coded = torch.where(x < 0, down, up)
        else:
            fine = torch.clamp(torch.round(x / small), 0, half - 1) * small
            coarse = torch.clamp(torch.round(x / large), 0, half - 1) * large
            coded = torch.where(x < half * small, fine, coarse)
        error = float((coded - x).square().sum())
        if error < least:
            best, least = coded, error
    return best


_ALL: tuple[Place, ...] = ("norm", "softmax", "gelu")

METHODS = (
    Method("min-max", "quant-whitepaper", _ALL, min_max, "integer products"),
    Method("percentile", "quant-whitepaper", _ALL, percentile, "integer products"),
    Method("least error", "OMSE", _ALL, least_error, "integer products"),
    Method("power-of-two factor", "FQ-ViT", ("norm",), power_of_two, "shifts before the sum"),
    Method("by channel, folded", "RepQ-ViT", ("norm",), by_channel, "integer products"),
    Method("log2", "FQ-ViT", ("softmax",), logarithmic, "shifts in the place of products"),
    Method(
        "log-sqrt2",
        "RepQ-ViT",
        ("softmax",),
        partial(logarithmic, kind="log-sqrt2"),
        "shifts and one factor for odd codes",
    ),
    Method("twin", "PTQ4ViT", ("softmax", "gelu"), twin, "integer products and a shift"),
)
"""Every quantizer of the bench."""


@dataclass(frozen=True)
class Profile:
    """What makes a distribution hard: see the fields."""

    channel_ratio: float
    """Widest channel's range over the middle one's."""
    power_law: float
    """Share of the values below a hundredth of the largest."""
    asymmetry: float
    """Largest value over the size of the least one."""


def profile(x: Tensor) -> Profile:
    """Look at a tensor with channels last."""
    flat = x.flatten(0, -2)
    width = flat.amax(0) - flat.amin(0)
    middle = float(width.median().clamp(min=1e-12))
    return Profile(
        float(width.max()) / middle,
        float((x.abs() < 0.01 * x.abs().max()).float().mean()),
        float(x.max()) / max(abs(float(x.min())), 1e-12),
    )


def signal_to_noise(x: Tensor, coded: Tensor) -> float:
    """Signal over quantization noise in dB; infinite where nothing was lost."""
    noise = (x - coded).double().square().sum()
    signal = x.double().square().sum()
    return float(10 * torch.log10(signal / noise)) if noise > 0 else float("inf")


@dataclass(frozen=True)
class Row:
    """What one method leaves of one tensor at one width."""

    method: str
    place: Place
    bits: int
    decibels: float


def bench(tensors: dict[Place, Tensor], widths: tuple[int, ...] = (8, 6, 4, 3)) -> list[Row]:
    """Every method at every width wherever it acts: signal over quantization noise."""
    return [
        Row(m.name, place, bits, signal_to_noise(x, m.quantize(x, bits)))
        for m in METHODS
        for place, x in tensors.items()
        if place in m.places
        for bits in widths
    ]
