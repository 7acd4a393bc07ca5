"""One self-contained HTML page for a document: no scripts, no outside resources, under 1 MB."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paredown.figure import Figure
from paredown.report import network_tables, plots, search_plots, tables, units, words
from paredown.result import CompareDoc, Document, DownDoc, ProfileDoc


def html(doc: Document) -> str:
    """The document as one HTML page.

    A profile, a result and a comparison have pages of their own; any other document is shown as its
    JSON under a heading.
    """
    for kind, build in _PAGES.items():
        if isinstance(doc, kind):
            name, context = build(doc)
            return _environment().get_template(name).render(doc=doc, **context)
    return (
        _environment()
        .get_template("plain.html.j2")
        .render(doc=doc, title=type(doc).__name__.removesuffix("Doc"), json=doc.to_json())
    )


def write(doc: Document, path: str | Path) -> Path:
    """Write the page at ``path``, whole or not at all; raises ``OSError`` where it cannot."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = html(doc)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def _profile(doc: ProfileDoc) -> tuple[str, dict[str, Any]]:
    whole = plots.Net(
        "this network", "after", "o", doc.totals.latency_s, plots.ideal(doc.operators)
    )
    timed = [
        (f"{r.module} {r.op}", r.predicted_s.value, r.measured_s.value)
        for r in doc.operators
        if r.predicted_s.value is not None and r.measured_s.value is not None
    ]
    return "profile.html.j2", {
        "title": f"Profile of {doc.target}",
        "modules": network_tables.modules(doc.modules),
        "operators": network_tables.operators(doc.operators),
        "kinds": network_tables.by_kind(doc.operators),
        "bounds": network_tables.by_bound(doc.operators),
        "waterline": _svg(plots.waterline("waterline", doc.operators, doc.waterline, doc.target)),
        "gap": _svg(plots.gap("gap", [whole, *plots.parts(doc.operators)])),
        "efficiency": network_tables.efficiency([whole], [doc.waterline]),
        "memory": _svg(plots.memory("memory", [("live", "after", doc.memory)])),
        "agreement": _svg(search_plots.agreement("agreement", timed, "operators")),
    }


def _down(doc: DownDoc) -> tuple[str, dict[str, Any]]:
    nets = tables.nets(doc)
    pairs = search_plots.pairs(doc.trials)
    return "down.html.j2", {
        "title": f"{words.VERDICTS[doc.verdict]}: {doc.target}",
        "headline": doc.headline or words.headline(doc),
        "verdict": words.VERDICTS[doc.verdict],
        "budget": tables.budget(doc.constraints),
        "sides": tables.sides(doc),
        "foreseen": words.foreseen(doc),
        "race": tables.race(doc),
        "layers": network_tables.layers(doc.layers_before, doc.layers_after),
        "waterlines": [
            _svg(plots.waterline(f"waterline-{n}", rows, level, whose))
            for n, rows, level, whose in (
                ("before", doc.operators_before, doc.waterline_before, "the original"),
                ("after", doc.operators_after, doc.waterline_after, "the pared network"),
            )
        ],
        "gap": _svg(plots.gap("gap", nets)),
        "efficiency": network_tables.efficiency(nets, [doc.waterline_before, doc.waterline_after]),
        "pareto": _svg(search_plots.pareto("pareto", doc)),
        "memory": _svg(
            plots.memory(
                "memory",
                [("original", "before", doc.memory_before), ("pared", "after", doc.memory_after)],
            )
        ),
        "agreement": _svg(search_plots.agreement("agreement", pairs, "candidates")),
        "residuals": tables.residuals(pairs),
        "trials": tables.trials(doc.trials),
        "sites": tables.sites(doc.sites),
        "recipe": yaml.safe_dump(doc.recipe, sort_keys=False, allow_unicode=True).strip(),
        "compare_names": [s.name for s in (doc.before, doc.best_single_backend, doc.after) if s],
    }


def _compare(doc: CompareDoc) -> tuple[str, dict[str, Any]]:
    names = ", ".join(s.name for s in doc.sides)
    verb = "Bench" if doc.kind == "bench" else "Comparison"
    return "compare.html.j2", {"title": f"{verb}: {names}", "rows": tables.compare(doc)}


_PAGES: dict[type[Document], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    ProfileDoc: _profile,
    DownDoc: _down,
    CompareDoc: _compare,
}


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("paredown.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "seconds": units.seconds,
        "bytes": units.size,
        "count": units.count,
        "duration": units.duration,
        "digits": units.digits,
        "quantity": units.quantity,
        "mark": _mark,
        "recipe_line": words.recipe,
    }
    env.filters.update(filters)
    names: dict[str, Any] = {"units": units, "meanings": units.MEANINGS, "marks": units.MARKS}
    env.globals.update(names)
    return env


def _mark(fig: Figure | None, note: str = "") -> Markup:
    """A figure's value with how it is known, its interval and, where there is none, the reason."""
    if fig is None:
        return Markup('<span class="fig none">not recorded</span>')
    out = Markup('<span class="fig {}"><b>{}</b> <i class="how" title="{}">{} {}</i>').format(
        fig.how, units.figure(fig), units.MEANINGS[fig.how], units.MARKS[fig.how], fig.how
    )
    extra = [e for e in (units.spread(fig), fig.reason or "", note) if e]
    if extra:
        out += Markup("<small>{}</small>").format("; ".join(extra))
    return out + Markup("</span>")


def _svg(text: str | None) -> Markup | None:
    # Made by svg.py, which escapes every text it is given.
    return None if text is None else Markup(text)
