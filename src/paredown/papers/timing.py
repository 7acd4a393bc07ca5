"""Interleaved timing for cards, in a child process of its own (CONTRACTS, Measuring)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from paredown.measure.child import Jobs, Limits

Build = Callable[..., Sequence[tuple[str, Callable[[], Any]]]]

Rows = dict[str, dict[str, Any]]


def side_by_side(build: Build, *args: Any, seconds: float, threads: int, limit_s: float) -> Rows:
    """Time what ``build(*args)`` returns (name, run), the first as baseline, in a fresh child.

    ``build`` is an importable function and ``args`` plain values. Each row holds ``latency`` and
    ``ratio`` to the baseline, both Figures; the row ``a/a`` has the baseline's ratio to itself.
    """
    return Jobs().run(_time, build, args, seconds, threads, limits=Limits.default(limit_s))


def _time(build: Build, args: tuple[Any, ...], seconds: float, threads: int) -> Rows:
    import torch

    from paredown.measure.compare import interleave

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        done = interleave(build(*args), seconds=seconds)
    rows: Rows = {t.name: {"latency": t.latency, "ratio": t.ratio} for t in done.timings}
    return rows | {"a/a": {"ratio": done.a_a}}
