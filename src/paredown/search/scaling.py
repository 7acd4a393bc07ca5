"""Scaling a network to a multiple of its work (Fast and Accurate Model Scaling, arXiv:2103.06877).

Work grows as ``d * w^2 * r^2`` in depth, width and resolution. A rule gives each of the three a
share of ``log(scale)``; the shares fix how activations (``d * w * r^2``) and parameters (``d *
w^2``) grow.
"""

from __future__ import annotations

from dataclasses import dataclass

from paredown.errors import InputError, UnknownName


@dataclass(frozen=True)
class Rule:
    """Shares of ``log(scale)`` that go into depth, width and resolution; they sum to 1."""

    depth: float
    width: float
    resolution: float

    def __post_init__(self) -> None:
        shares = (self.depth, self.width, self.resolution)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise InputError(f"a scaling rule's shares are >= 0 and sum to 1, got {shares}")

    @property
    def activations(self) -> float:
        """Exponent of activations in the scale: ``e_d + e_w / 2 + e_r``."""
        return self.depth + self.width / 2 + self.resolution

    @property
    def params(self) -> float:
        """Exponent of parameters in the scale: ``e_d + e_w``."""
        return self.depth + self.width


def compound(alpha: float) -> Rule:
    """The paper's family: ``alpha`` into width, the rest halved between depth and resolution.

    ``alpha`` 1 is width alone, 1/3 uniform compound scaling, 0.8 the paper's fast scaling (dWr).
    """
    return Rule((1 - alpha) / 2, alpha, (1 - alpha) / 2)


RULES: dict[str, Rule] = {
    "w": Rule(0, 1, 0),
    "d": Rule(1, 0, 0),
    "r": Rule(0, 0, 1),
    "dw": Rule(0.5, 0.5, 0),
    "wr": Rule(0, 0.5, 0.5),
    "dr": Rule(0.5, 0, 0.5),
    "dwr": compound(1 / 3),
    "dWr": compound(0.8),
}


def rule(name: str) -> Rule:
    """A named rule; raises ``UnknownName``."""
    if name not in RULES:
        raise UnknownName("scaling rule", name, list(RULES))
    return RULES[name]


@dataclass(frozen=True)
class Shape:
    """A network as scaling sees it: depth and width per stage, input side, group width if any."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    resolution: int
    group_width: int | None = None


def scaled(shape: Shape, by: Rule, scale: float) -> Shape:
    """The shape with about ``scale`` times the work.

    Widths go to multiples of 8 (of the group width where there is one), depths to integers of at
    least 1, the resolution to a multiple of 4; what rounding takes or gives is left so. Raises
    ``InputError`` for a scale that is not positive.
    """
    if scale <= 0:
        raise InputError(f"scale must be positive, got {scale}")
    wider = scale ** (by.width / 2)
    group = None if shape.group_width is None else group_width(shape.group_width * wider)
    unit = group if group is not None and group > 8 else 8
    widths = tuple(max(unit, round(w * wider / unit) * unit) for w in shape.widths)
    if group is not None:
        group = min(group, *widths)
    depths = tuple(max(1, round(d * scale**by.depth)) for d in shape.depths)
    resolution = max(4, round(shape.resolution * scale ** (by.resolution / 2) / 4) * 4)
    return Shape(depths, widths, resolution, group)


def group_width(wanted: float) -> int:
    """A group width as the paper rounds it: up to 2 kept, 3 to 5 becomes 4, else a multiple of
    8.
    """
    g = round(wanted)
    if g <= 2:
        return max(1, g)
    return 4 if g <= 5 else max(8, round(wanted / 8) * 8)
