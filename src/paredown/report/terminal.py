"""Documents as tables on the terminal, the same figures as the pages; one function per kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from paredown.figure import Figure
from paredown.report import listings, tables
from paredown.report.cells import known, legend, table
from paredown.report.memory_plan import memory_plan
from paredown.report.native_plan import native_plan
from paredown.report.pipeline import pipeline
from paredown.report.serving_plan import serving_plan
from paredown.report.terminal_down import check, down, plan, show_folder
from paredown.report.terminal_profile import profile
from paredown.result import (
    CardsDoc,
    CheckDoc,
    CompareDoc,
    DeviceDoc,
    DoctorDoc,
    Document,
    DownDoc,
    MemoryPlanDoc,
    NativePlanDoc,
    PapersDoc,
    PipelineDoc,
    PlanDoc,
    ProfileDoc,
    ServingPlanDoc,
    ShowDoc,
    TechniquesDoc,
    ZooDoc,
)

WIDTH = 132


def show(doc: Document, console: Console | None = None) -> None:
    """Print a document. Raises ``TypeError`` for one that has no table."""
    render = _RENDER.get(type(doc))
    if render is None:
        raise TypeError(f"no table for {type(doc).__name__}")
    if console is None:
        console = Console(highlight=False, markup=False)
        # Into a pipe or a file there is no width to fit.
        if not console.is_terminal:
            console = Console(width=WIDTH, highlight=False, markup=False)
    for part in render(doc):
        console.print(part)


def compare(doc: CompareDoc) -> list[RenderableType]:
    """Sides as columns, metrics as rows, ratios to the first side."""
    title = (
        "Bench"
        if doc.kind == "bench"
        else f"Ratios refer to {doc.sides[0].name}, measured in turns"
    )
    out = table(
        title,
        "",
        *[f"{s.name} ({s.backend})" for s in doc.sides],
        right=range(1, len(doc.sides) + 1),
    )
    seen: list[Figure | None] = []
    for row in tables.compare(doc):
        cells: list[Text] = []
        for cell in row["cells"]:
            seen.append(cell["figure"])
            text = known(cell["figure"], spread=True)
            cells.append(
                text.append_text(Text("\n").append_text(known(cell["ratio"], spread=True)))
                if cell["ratio"]
                else text
            )
        out.add_row(row["title"], *cells)
    noise = []
    if doc.a_a_ratio is not None:
        noise = [Text.assemble("The same against itself gave ", known(doc.a_a_ratio), ".")]
    return [
        out,
        legend(seen),
        *noise,
        Text(f"{doc.threads} threads, {doc.fingerprint.cpu}", style="dim"),
        *map(Text, doc.notes),
    ]


_RENDER: dict[type[Document], Callable[[Any], list[RenderableType]]] = {
    PipelineDoc: pipeline,
    ProfileDoc: profile,
    DownDoc: down,
    CheckDoc: check,
    CompareDoc: compare,
    PlanDoc: plan,
    ShowDoc: show_folder,
    DeviceDoc: lambda d: _padded(listings.device(d, table)),
    TechniquesDoc: lambda d: _padded(listings.techniques(d, table)),
    PapersDoc: lambda d: _padded(listings.papers(d, table)),
    NativePlanDoc: lambda d: _padded(native_plan(d, table)),
    MemoryPlanDoc: memory_plan,
    ServingPlanDoc: serving_plan,
    ZooDoc: lambda d: _padded(listings.zoo(d, table)),
    CardsDoc: lambda d: _padded(listings.cards(d, table, known)),
    DoctorDoc: lambda d: _padded(listings.doctor(d, table)),
}


def _padded(parts: list[RenderableType]) -> list[RenderableType]:
    return [Padding(p, (0, 0, 1, 0)) for p in parts]
