"""A search on the terminal: its plan, its outcome, a check of a budget, and a saved artefact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from paredown.figure import Figure
from paredown.report import tables, units, words
from paredown.report.cells import known, legend, table
from paredown.result import CheckDoc, ConstraintResult, DownDoc, PlanDoc, ShowDoc

TOP = 15
TONES = {"met": "bold green", "predicted_met": "bold yellow"}


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
