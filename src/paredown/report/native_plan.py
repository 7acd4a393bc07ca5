"""A native plan as a table: one line for each step, what it fuses, where it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from paredown.report import units
from paredown.result import NativePlanDoc

MakeTable = Callable[..., Any]


def native_plan(doc: NativePlanDoc, table: MakeTable) -> list[RenderableType]:
    """Steps, then memory; operators that torch runs are marked with the reason."""
    shapes = ", ".join(f"{i.name} {'x'.join(map(str, i.shape))} {i.dtype}" for i in doc.inputs)
    head = Text(f"{doc.target}: {shapes}, {doc.isa}, {doc.threads} threads", style="bold")
    out = table("", "operator", "stands for", "writes", "parts", right=(4,))
    for i, s in enumerate(doc.steps):
        name = Text(s.op if s.fallback is None else f"{s.op} (torch: {s.fallback})")
        if s.fallback is not None:
            name.stylize("yellow")
        name.append(f"\n{s.site}", style="dim")
        out.add_row(str(i), name, " + ".join(s.fused), "\n".join(s.writes), str(s.units))
    ran = sum(s.fallback is not None for s in doc.steps)
    said = [
        f"{len(doc.steps)} steps, {ran} of them by torch; built in {units.duration(doc.build_s)}",
        f"arena {units.size(doc.arena_bytes)} (no plan of this order needs less than "
        f"{units.size(doc.lower_bound_bytes)}), scratch {units.size(doc.scratch_bytes)}, "
        f"weights {units.size(doc.weight_bytes)}",
    ]
    return [head, out, *map(Text, said)]
