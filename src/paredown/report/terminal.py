"""Documents as tables on the terminal, the same figures as the pages; one function per kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from paredown.figure import Figure
from paredown.report import listings, network_tables, tables, units, words
from paredown.report.cells import known, legend, table
from paredown.report.memory_plan import memory_plan
from paredown.report.native_plan import native_plan
from paredown.result import (
    CardsDoc,
    CheckDoc,
    CompareDoc,
    ConstraintResult,
    DeviceDoc,
    DoctorDoc,
    Document,
    DownDoc,
    MemoryPlanDoc,
    NativePlanDoc,
    PapersDoc,
    PlanDoc,
    ProfileDoc,
    ShowDoc,
    TechniquesDoc,
    ZooDoc,
)

TOP = 15
WIDTH = 132
TONES = {"met": "bold green", "predicted_met": "bold yellow"}


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
        **{units.title(name): figure for name, figure in doc.parts.items()},
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


def down(doc: DownDoc) -> list[RenderableType]:
    """The verdict in words, the budget, before and after, what was tried, where the report is."""
    verdict = Text(words.VERDICTS[doc.verdict], style=TONES.get(doc.verdict, "bold red"))
    said = [Text(line) for line in doc.headline or words.headline(doc)]
    names = [
        doc.before.name,
        doc.best_single_backend.name if doc.best_single_backend else "best single backend",
        f"{doc.after.name} ({doc.after.backend})",
    ]
    sides = table(
        "Before and after", "", *names, "after / before", "after / best single", right=range(1, 6)
    )
    seen: list[Figure | None] = []
    for row in tables.sides(doc):
        seen += row["cells"]
        cells = [
            known(c) if c is None or c.value is not None else Text("n/a", style="dim")
            for c in row["cells"]
        ]
        ratios = [known(r) if r else Text() for r in (row["ratio"], row["versus"])]
        sides.add_row(row["title"], *cells, *ratios)
    states = {s: sum(t.state == s for t in doc.trials) for s in ("done", "skipped", "failed")}
    done = "priced and judged" if words.foreseen(doc) else "measured"
    tried = (
        f"{states['done']} candidates {done}, {states['skipped']} skipped, "
        f"{states['failed']} failed in {units.duration(doc.effort_s)}."
    )
    failed = [
        Text(f"  #{t.id} {words.recipe(t.recipe)}: {t.reason}", style="dim")
        for t in doc.trials
        if t.state == "failed"
    ][:5]
    lost = [s for s in doc.sites if s.outcome == "simulated"]
    simulated: list[RenderableType] = []
    if lost:
        one = "1 site is simulated and saves nothing"
        many = one if len(lost) == 1 else f"{len(lost)} sites are simulated and save nothing"
        text = f"{many}; {lost[0].site}: {lost[0].detail}"
        simulated.append(Text(text, style="yellow"))
    return [
        verdict,
        *said,
        "",
        budget(doc.constraints),
        "",
        sides,
        legend(seen),
        "",
        Text(tried),
        *failed,
        *simulated,
        Text(f"Recipe: {words.recipe(doc.recipe)}"),
        *[Text(n, style="dim") for n in doc.notes],
        Text(f"Report: {doc.folder}/report.html", style="bold"),
    ]


def budget(results: Sequence[ConstraintResult]) -> Table:
    """The budget table: asked, achieved, met, proven."""
    out = table("Budget", "asked", "achieved", "", "why")
    for row in tables.budget(results):
        met = Text("met" if row["met"] else "not met", style="green" if row["met"] else "red")
        if row["proven"]:
            met.append(f", {row['proven']}", style="dim")
        out.add_row(row["text"], known(row["achieved"], spread=True), met, row["why"])
    return out


def check(doc: CheckDoc) -> list[RenderableType]:
    """Whether a target meets a budget."""
    where = "" if doc.device == "this" else f" on {doc.device}"
    said = Text(
        f"{doc.target}{where}: {words.VERDICTS[doc.verdict].lower()}",
        style=TONES.get(doc.verdict, "bold red"),
    )
    return [said, budget(doc.constraints), legend([c.achieved for c in doc.constraints])]


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


def plan(doc: PlanDoc) -> list[RenderableType]:
    """What a `down` would try."""
    head = Text(f"{doc.target} on {doc.device}: {', '.join(doc.constraints)}", style="bold")
    backends = table("Backends", "backend", "")
    for name, why in doc.backends.items():
        backends.add_row(name, why or Text("will be tried", style="green"))
    techniques_ = table("Techniques", "technique", "")
    for name, said in doc.techniques.items():
        techniques_.add_row(name, said)
    candidates = table(
        f"{len(doc.candidates)} candidates, the most promising first", "recipe", "predicted"
    )
    for c in doc.candidates[:TOP]:
        guess = (c.get("predicted") or {}).items()
        said = ", ".join(f"{metric} {_guess(metric, value)}" for metric, value in guess)
        candidates.add_row(c.get("candidate") or words.recipe(c.get("recipe")), said)
    cost = Text.assemble(
        "Expected: ",
        known(doc.expected_s),
        f" of {units.duration(doc.effort_s)} allowed, ",
        known(doc.disk_bytes),
        " of disk. Nothing was run.",
    )
    return [head, backends, techniques_, candidates, cost, *map(Text, doc.notes)]


def show_folder(doc: ShowDoc) -> list[RenderableType]:
    """An artefact: what it is, how it was made, what it achieved."""
    m = doc.manifest
    files = m.get("files") or {}
    on_disk = sum(f["bytes"] for f in files.values() if f["role"] == "run")
    head = Text(
        f"{doc.folder}: {m.get('name', '?')} for {m.get('backend', '?')}, {len(files)} files, "
        f"{units.size(on_disk)} to run, all as they were written",
        style="bold",
    )
    facts = table("", "", "")
    source = m.get("source") or {}
    facts.add_row("made from", source.get("ref") or "a workload in Python")
    for key in ("inputs", "outputs"):
        facts.add_row(key, "; ".join(_tensor(t) for t in m.get(key) or []))
    for key in ("run", "threads", "created"):
        facts.add_row(key, str(m.get(key, "?")))
    parts: list[RenderableType] = [head, facts, Text(f"Recipe: {words.recipe(doc.recipe)}")]
    if doc.result is not None:
        parts += ["", *down(DownDoc.model_validate(doc.result))]
    return parts


def _tensor(info: dict[str, Any]) -> str:
    return f"{info['name']} {'x'.join(map(str, info['shape']))} {info['dtype']}"


def _guess(metric: str, value: Any) -> str:
    """A prediction of a plan: a figure, or a plain number in the metric's own unit."""
    if isinstance(value, dict):
        return units.figure(Figure.model_validate(value))
    return units.quantity(float(value), units.UNITS.get(metric.partition(".")[0], "1"))


_RENDER: dict[type[Document], Callable[[Any], list[RenderableType]]] = {
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
    ZooDoc: lambda d: _padded(listings.zoo(d, table)),
    CardsDoc: lambda d: _padded(listings.cards(d, table, known)),
    DoctorDoc: lambda d: _padded(listings.doctor(d, table)),
}


def _padded(parts: list[RenderableType]) -> list[RenderableType]:
    return [Padding(p, (0, 0, 1, 0)) for p in parts]
