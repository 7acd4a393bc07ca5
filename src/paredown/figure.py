"""A number, its unit, and how it is known: the only form in which paredown reports anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

How = Literal["measured", "counted", "predicted", "nominal", "unavailable"]

DECIDES: frozenset[How] = frozenset({"measured", "counted"})
"""The ways of knowing that may decide a verdict without ``--accept predicted``."""


class Figure(BaseModel):
    """One reported number (CONTRACTS, Figures).

    ``value`` is in SI base units (s, B, J) or counts; ``spread`` is a (low, high) interval in the
    same unit, ``n`` the number of samples behind it; ``quantiles`` maps ``p50`` .. ``p99`` to
    values over what ``over`` names. ``unavailable`` figures have ``value`` None and say why in
    ``reason``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    unit: str
    how: How
    spread: tuple[float, float] | None = None
    n: int | None = None
    quantiles: dict[str, float] | None = None
    over: Literal["inputs", "repeats"] | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Figure:
        if self.how == "unavailable":
            if self.value is not None or not self.reason:
                raise ValueError("an unavailable figure has no value and says why in `reason`")
        elif self.value is None or not math.isfinite(self.value):
            raise ValueError(f"a {self.how} figure needs a finite value, got {self.value}")
        if self.quantiles is not None and self.over is None:
            raise ValueError("quantiles need `over`: inputs or repeats")
        return self

    @property
    def decides(self) -> bool:
        """Whether this figure may decide a verdict on its own."""
        return self.how in DECIDES

    def known(self) -> float:
        """The value; raises ``ValueError`` with the reason when it is unavailable."""
        if self.value is None:
            raise ValueError(f"figure unavailable: {self.reason}")
        return self.value


QUANTILES = (0.5, 0.9, 0.95, 0.99)
INPUTS = 100
"""Inputs from which quantiles over inputs are told (CONTRACTS, Figures)."""


def over_inputs(values: Sequence[float], unit: str, how: How) -> Figure:
    """The mean of one value per input, and its quantiles; none of these below `INPUTS` inputs."""
    n, ordered = len(values), sorted(values)
    if n < INPUTS:
        few = f"quantiles over inputs need {INPUTS} of them, {n} were given"
        return Figure(value=sum(values) / n, unit=unit, how=how, n=n, reason=few)
    return Figure(
        value=sum(values) / n,
        unit=unit,
        how=how,
        n=n,
        quantiles={f"p{round(100 * q)}": _quantile(ordered, q) for q in QUANTILES},
        over="inputs",
    )


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between neighbours, as numpy's."""
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def with_parts(figures: Mapping[str, Figure]) -> dict[str, float]:
    """The known values by metric, quantiles too: ``latency`` and ``latency.p95``."""
    found: dict[str, float] = {}
    for metric, figure in figures.items():
        if figure.value is None:
            continue
        found[metric] = figure.value
        if "." not in metric:
            found |= {f"{metric}.{name}": v for name, v in (figure.quantiles or {}).items()}
    return found


def measured(
    value: float, unit: str, *, spread: tuple[float, float] | None = None, n: int | None = None
) -> Figure:
    """A figure timed or read on this machine."""
    return Figure(value=value, unit=unit, how="measured", spread=spread, n=n)


def counted(value: float, unit: str) -> Figure:
    """A figure exact by construction: bytes on disk, parameters, MACs."""
    return Figure(value=float(value), unit=unit, how="counted")


def predicted(value: float, unit: str, *, reason: str | None = None) -> Figure:
    """A figure from a model of cost; ``reason`` names an assumption worth knowing."""
    return Figure(value=value, unit=unit, how="predicted", reason=reason)


def nominal(value: float, unit: str, *, reason: str | None = None) -> Figure:
    """A figure from a data sheet; ``reason`` names the source."""
    return Figure(value=value, unit=unit, how="nominal", reason=reason)


def unavailable(unit: str, reason: str) -> Figure:
    """A figure that cannot be had here, and why."""
    return Figure(value=None, unit=unit, how="unavailable", reason=reason)
