"""A memory plan in words: the arena, what is proven of it, and where there is no room, why."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from paredown.report import units
from paredown.result import MemoryPlanDoc

SHOWN = 8
"""Buffers named where there is no room."""


def memory_plan(doc: MemoryPlanDoc) -> list[RenderableType]:
    """The plan as CSV, or where it went to a file its name; standard error has the rest."""
    if doc.certificate == "no room":
        return []
    if doc.out is None:
        return [Text(csv_text(doc).rstrip("\n"), no_wrap=True, overflow="ignore")]
    return [Text(f"Written to {doc.out}.")]


def csv_text(doc: MemoryPlanDoc) -> str:
    """The plan as ``id,lower,upper,size,offset``."""
    from paredown.cost.arena import Buffer
    from paredown.cost.arena.table import rows_text

    return rows_text((Buffer(b.id, b.lower, b.upper, b.size), b.offset) for b in doc.buffers)


def summary(doc: MemoryPlanDoc) -> str:
    """The arena against the capacity, the bound and greedy-by-size; or why there is no room."""
    if doc.certificate == "no room":
        return no_room(doc)
    said = {
        "optimal": f"no arena is smaller ({doc.proof})",
        "bound": f"none is smaller than {_size(doc.lower_bound_bytes)} ({doc.proof})",
    }[doc.certificate]
    return (
        f"{len(doc.buffers)} buffers in {_size(doc.arena_bytes)} of {_size(doc.capacity_bytes)}: "
        f"{said}; greedy-by-size {_size(doc.greedy_bytes)}."
    )


def no_room(doc: MemoryPlanDoc) -> str:
    """By how many bytes it does not fit, the proof, and the largest buffers at the peak."""
    short = doc.lower_bound_bytes - doc.capacity_bytes
    sizes = {b.id: b.size for b in doc.buffers}
    names = ", ".join(f"{i} ({_size(sizes[i])})" for i in doc.at_peak[:SHOWN])
    more = f" and {len(doc.at_peak) - SHOWN} more" if len(doc.at_peak) > SHOWN else ""
    return (
        f"No room: every arena needs at least {_size(doc.lower_bound_bytes)} ({doc.proof}), "
        f"{short} B more than the capacity of {_size(doc.capacity_bytes)}. "
        f"Alive at step {doc.peak_step}: {names}{more}."
    )


def _size(nbytes: int) -> str:
    return f"{units.size(nbytes)} ({nbytes} B)" if nbytes >= 1024 else f"{nbytes} B"
