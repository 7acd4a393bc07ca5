"""Terminal tables of the lists: devices, techniques, papers, claim cards, what is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from paredown.figure import Figure
from paredown.report import units
from paredown.result import CardsDoc, DeviceDoc, DoctorDoc, PapersDoc, TechniquesDoc, ZooDoc

MakeTable = Callable[..., Table]
VERDICT_TONES = {"holds": "green", "partly": "yellow", "fails": "red"}
STATE_TONES = {"ok": "green", "missing": "red", "limited": "yellow"}


def plain(value: Any) -> str:
    """A value of a manifest or a device as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def device(doc: DeviceDoc, table: MakeTable) -> list[RenderableType]:
    """One device in full, several in a list."""
    if len(doc.devices) != 1:
        out = table("Devices", "name", "", "figures", "peak", "memory", right=(3, 4))
        for d in doc.devices:
            peaks, levels = d.get("peak_macs_s") or {}, d.get("levels") or []
            best = max(peaks, key=peaks.__getitem__, default=None)
            peak = f"{units.quantity(peaks[best], 'MAC/s')} {best}" if best else "n/a"
            last = units.quantity(levels[-1]["read_bytes_s"], "B/s") if levels else "n/a"
            out.add_row(d["name"], d.get("title", ""), d.get("how", ""), peak, last)
        return [out]
    d = doc.devices[0]
    head = Text(
        f"{d['name']}: {d.get('title', '')} ({d.get('how', '?')}, {d.get('threads', '?')} threads)",
        style="bold",
    )
    peaks = table("Peak rates (1 MAC = 2 FLOPs)", "dtype", "MAC/s", right=(1,))
    for dtype, rate in (d.get("peak_macs_s") or {}).items():
        peaks.add_row(dtype, units.quantity(rate, "MAC/s"))
    levels = table("Memory", "level", "capacity", "read", "write", right=(1, 2, 3))
    for level in d.get("levels") or []:
        write = level.get("write_bytes_s")
        levels.add_row(
            level["name"],
            units.size(level["capacity_bytes"]),
            units.quantity(level["read_bytes_s"], "B/s"),
            units.quantity(write, "B/s") if write else "n/a",
        )
    overheads = table("Overhead per call", "backend", "", right=(1,))
    for backend, seconds in (d.get("overhead_s") or {}).items():
        overheads.add_row(backend, units.seconds(seconds))
    rest = table("", "", "")
    for key in ("kind", "count", "array", "reconfigure_s", "isa", "idle_w", "links", "sources"):
        if d.get(key):
            rest.add_row(key, plain(d[key]))
    return [head, peaks, levels, overheads, rest]


def techniques(doc: TechniquesDoc, table: MakeTable) -> list[RenderableType]:
    """Every technique; for a target, whether it applies or why not."""
    if doc.target is None:
        out = table("Techniques", "name", "kind", "stage", "maturity", "needs", "what it does")
        for t in doc.techniques:
            out.add_row(t.name, t.kind, t.stage, t.maturity, ", ".join(t.needs), t.summary)
        return [out]
    out = table(f"Techniques for {doc.target}", "name", "applies", "sites", "why not", right=(2,))
    for t in doc.techniques:
        said = Text("yes", style="green") if t.applies else Text("no", style="red")
        out.add_row(t.name, said, "" if t.sites is None else str(t.sites), t.why_not or "")
    return [out]


def papers(doc: PapersDoc, table: MakeTable) -> list[RenderableType]:
    """The catalogue; one paper in full."""
    if len(doc.papers) == 1:
        p = doc.papers[0]
        return [
            Text(f"{p.key}: {p.title} ({p.year})", style="bold"),
            Text(p.claim),
            Text(f"Code: {p.module}"),
            Text(f"Last finding: {p.verdict or 'not run yet'}"),
        ]
    out = table("Papers", "key", "year", "title", "last finding")
    for p in doc.papers:
        out.add_row(
            p.key,
            str(p.year),
            p.title,
            Text(p.verdict or "", style=VERDICT_TONES.get(p.verdict or "", "dim")),
        )
    return [out]


def zoo(doc: ZooDoc, table: MakeTable) -> list[RenderableType]:
    """The networks; of one also where the paper's figures are from."""
    columns = ("network", "paper", "input", "params", "paper's", "MACs", "paper's")
    out = table("Networks", *columns, right=range(3, 7))
    for n in doc.networks:
        out.add_row(
            n.name,
            n.paper,
            "x".join(map(str, n.input)),
            f"{n.params:,}",
            f"{n.paper_params:,}" if n.paper_params is not None else "",
            f"{n.macs:,}",
            f"{n.paper_macs:,}" if n.paper_macs is not None else "",
        )
    if len(doc.networks) != 1:
        return [out]
    said = [f"The paper's figures: {n.source}." for n in doc.networks if n.source]
    said += [f"They differ: {n.why}." for n in doc.networks if n.why]
    return [out, *map(Text, said)]


def cards(doc: CardsDoc, table: MakeTable, known: Callable[..., Text]) -> list[RenderableType]:
    """Claim cards: the verdict, why, what was measured against which threshold."""
    parts: list[RenderableType] = []
    for card in doc.cards:
        head = Text.assemble(
            (card.key, "bold"), ": ", (card.verdict, VERDICT_TONES.get(card.verdict, "yellow"))
        )
        out = table("", "figure", "measured", "threshold", right=(2,))
        for name in dict.fromkeys([*card.measured, *card.thresholds]):
            limit = card.thresholds.get(name)
            fig: Figure | None = card.measured.get(name)
            out.add_row(
                name,
                known(fig, spread=True) if fig else "",
                "" if limit is None else units.digits(limit),
            )
        tail = f"{card.scale}, {len(card.seeds)} seeds, {units.duration(card.seconds)}; "
        tail += "smallest effect it could see: "
        parts += [
            head,
            Text(card.claim),
            Text(card.why),
            out,
            Text(tail + units.figure(card.power), style="dim"),
        ]
    return parts


def doctor(doc: DoctorDoc, table: MakeTable) -> list[RenderableType]:
    """What is installed, what is missing, how to get it."""
    out = table("", "", "", "")
    for row in doc.rows:
        detail = Text(row.detail)
        if row.fix:
            detail.append(f"\n{row.fix}", style="dim")
        out.add_row(Text(row.state, style=STATE_TONES[row.state]), row.name, detail)
    return [out]
