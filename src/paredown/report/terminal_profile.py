"""A profile on the terminal: totals, the slowest modules and operators, what has no price."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from paredown.report import network_tables, units
from paredown.report.cells import known, legend, table
from paredown.result import ProfileDoc

TOP = 15


def profile(doc: ProfileDoc) -> list[RenderableType]:
    """Totals, the modules and operators that take longest, and what could not be priced."""
    t = doc.totals
    shapes = ", ".join(f"{i.name} {'x'.join(map(str, i.shape))} {i.dtype}" for i in doc.inputs)
    head = Text(
        f"{doc.target}: {shapes}, on {doc.device} ({doc.device_how}), {doc.backend}, "
        f"{doc.threads} threads",
        style="bold",
    )
    figures = {
        "latency": t.latency_s,
        "MACs": t.macs,
        "parameters": t.params,
        "traffic": t.traffic_bytes,
        "peak memory": t.peak_bytes,
        "energy": t.energy_j,
        **{units.title(name): figure for name, figure in (doc.parts | doc.machine).items()},
    }
    totals = table("Totals of one run", "", "")
    for name, fig in figures.items():
        totals.add_row(name, known(fig, spread=True))
    mods = table(
        "Modules",
        "module",
        "share",
        "predicted",
        "measured",
        "MACs",
        "params",
        "bytes",
        right=range(1, 7),
    )
    slow = sorted(doc.modules, key=lambda m: -(m.share or 0.0))[:TOP]
    for m in (m for m in doc.modules if m in slow):
        share = f"{m.share:.1%}" if m.share is not None else ""
        mods.add_row(
            m.path or "(whole network)",
            share,
            units.seconds(m.predicted_s),
            units.seconds(m.measured_s),
            units.count(m.macs),
            units.count(m.params),
            units.size(m.bytes),
        )
    found = network_tables.operators(doc.operators, TOP)
    ops = table(
        f"The slowest of {found.top.total} operators",
        "operator",
        "module",
        "bound",
        "MAC/B",
        "ideal",
        "predicted",
        "measured",
        right=range(3, 7),
    )
    for r in found.top.rows:
        ops.add_row(
            r.op,
            r.module,
            r.bound,
            "" if r.intensity is None else units.digits(r.intensity),
            units.seconds(r.ideal_s),
            units.figure(r.predicted_s),
            units.figure(r.measured_s),
        )
    share = doc.priced_share
    priced = f"Priced: {share.operators:.1%} of operators, {share.bytes:.1%} of bytes"
    priced += f", {share.time:.1%} of measured time." if share.time is not None else "."
    if doc.unpriced:
        priced += f" No rule for {', '.join(doc.unpriced)}: left out, not counted as zero."
    level = doc.waterline.get("intensity")
    under = sum(b["share"] for b in network_tables.by_bound(doc.operators) if b["name"] == "memory")
    water = (
        f"Waterline {units.digits(level)} MAC/B; {under:.0%} of the time is bound by memory."
        if level
        else ""
    )
    return [
        head,
        totals,
        legend(list(figures.values())),
        "",
        mods,
        "",
        ops,
        "",
        Text(priced),
        Text(water),
        *map(Text, doc.notes),
    ]
