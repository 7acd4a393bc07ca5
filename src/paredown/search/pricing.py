"""What a network would cost on a device, as figures by metric: what a trial is ranked by, and what
decides where nothing can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from paredown.budget import quotient
from paredown.cost.parts import parts, rate

if TYPE_CHECKING:
    from paredown.cost.price import Priced
    from paredown.figure import Figure
    from paredown.runtime.backend import Executable


def unrealised(executable: Executable) -> frozenset[str]:
    """Modules whose numbers did not run or are not held as was asked: a price that took their
    savings for granted would count what nothing confirms.
    """
    return frozenset(executable.realised("", executable.asked).lost)


def predicted(priced: Priced) -> dict[str, Figure]:
    """Every metric that the cost model predicts; ``energy`` may be unavailable."""
    return {
        "latency": priced.latency,
        **parts(priced),
        "throughput": rate(priced),
        "memory": priced.peak_bytes,
        "traffic": priced.traffic,
        "energy": priced.energy,
    }


def ratios(after: Mapping[str, Figure], before: Mapping[str, Figure]) -> dict[str, Figure]:
    """Each figure relative to the same one of ``before``, where both are known."""
    return {
        metric: quotient(ours, before[metric])
        for metric, ours in after.items()
        if ours.value is not None and metric in before and before[metric].value
    }
