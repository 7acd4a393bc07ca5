"""Places in one arena: heuristics, the exact optimum, its certificate, buffers of real networks."""

from __future__ import annotations

from paredown.cost.arena.graphs import Dag, buffers, dag
from paredown.cost.arena.order import Order, lowest, peak_of
from paredown.cost.arena.problem import Buffer, Placement, Problem, overlaps, peak_step
from paredown.cost.arena.solve import place

__all__ = [
    "Buffer",
    "Dag",
    "Order",
    "Placement",
    "Problem",
    "buffers",
    "dag",
    "lowest",
    "overlaps",
    "peak_of",
    "peak_step",
    "place",
]
