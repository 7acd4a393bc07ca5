"""What a backend was found to take on operators of all sizes: kept beside a calibrated device.

A curve gives the factor between an operator's analytical bound and the time it takes, as a smooth
function of its sizes: a Gaussian process in their logarithms, stored as plain numbers.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Curve(BaseModel):
    """One group of operators on one backend.

    ``parts`` weigh the parts of an operator's analytical time (`cost.price.parts`): their sum is
    what the group's arithmetic, bytes and calls take on the whole. The natural logarithm of
    ``time / sum`` at values ``x`` is ``mean + sum(weights * kernel(x / scales, points / scales))``
    with the Matern 5/2 kernel of variance 1, and stays within ``least`` and ``most``; ``x`` is
    moved into the box ``low`` to ``high`` first: beyond what was timed the parts alone grow.
    ``error`` is the typical relative error on operators left out (median of leave-one-out),
    ``samples`` how many were timed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[float, ...]
    scales: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    points: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    mean: float
    least: float
    most: float
    error: float
    samples: int


class Learned(BaseModel):
    """``curves`` by ``backend/group``, and what operators take beside each other.

    ``glue_s`` is by ``backend/what``: seconds of a ``run`` beside its calls, more of a ``call``
    when nothing is warm, of a ``view``; the factor of operators' ``arithmetic``, and the ``factor``
    of the rest of their time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    curves: dict[str, Curve]
    glue_s: dict[str, float] = {}

    def backends(self) -> frozenset[str]:
        """The backends that were timed."""
        return frozenset(name.partition("/")[0] for name in self.curves)
