"""One subject timed by itself: what calibration and the check of predictions ask for.

Verdicts need `compare`, where subjects take turns; a cost model needs a time of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from paredown.measure.compare import stable_part

LEAST, MOST = 5, 2000
"""Runs that count."""


def alone(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each stable run, of as many runs as fit into ``seconds``; at least five.

    The first run, which may allocate and load, is left out.
    """
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or (time.perf_counter() < end and len(times) < MOST):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return stable_part(times, max(LEAST, len(times) // 2))
