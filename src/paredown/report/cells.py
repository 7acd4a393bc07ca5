"""What terminal tables are made of: figures with marks, a legend of the marks, a plain table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from paredown.figure import Figure
from paredown.report import units

HOW_TONES = {"predicted": "yellow", "nominal": "yellow", "unavailable": "dim"}


def known(fig: Figure | None, *, spread: bool = False) -> Text:
    """A figure with its mark: ``1.71 ms ●``; the reason where there is none."""
    if fig is None:
        return Text("not recorded", style="dim")
    if fig.value is None:
        return Text(f"n/a ({fig.reason})", style="dim")
    said = f"{units.figure(fig)} {units.MARKS[fig.how]}"
    extra = units.spread(fig) if spread else ""
    out = Text(said, style=HOW_TONES.get(fig.how, ""))
    return out.append(f"\n{extra}", style="dim") if extra else out


def legend(figures: Sequence[Figure | None]) -> Text:
    """The marks that occur, explained."""
    used = dict.fromkeys(f.how for f in figures if f is not None and f.how != "unavailable")
    return Text(
        ", ".join(f"{units.MARKS[h]} {h}" for h in used) + ". 1 MAC = 2 FLOPs.", style="dim"
    )


class Plain(Table):
    """A table whose text is taken as it stands: ``paredown[onnx]`` is no markup."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; strings are not parsed."""
        super().add_row(*[Text(c) if isinstance(c, str) else c for c in cells], **options)


def table(title: str, *columns: str, right: Sequence[int] = ()) -> Table:
    """A plain table; columns in ``right`` hold numbers."""
    out = Plain(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        min_width=len(title),
        show_header=any(columns),
    )
    for i, name in enumerate(columns):
        justify = "right" if i in right else "left"
        out.add_column(Text(name), justify=justify, header_style="dim", overflow="fold")
    return out
