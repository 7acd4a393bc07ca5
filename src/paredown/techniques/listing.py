"""Every technique as a row: from the generated manifest, without torch, or asked about a target."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.errors import ParedownError
from paredown.result import TechniqueRow

if TYPE_CHECKING:
    from paredown.graph.graph import Graph
    from paredown.technique import Technique
    from paredown.workload import Workload

MANIFEST = Path(__file__).with_name("manifest.json")


def row(cls: type[Technique]) -> TechniqueRow:
    """What a technique's class says of itself."""
    said = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return TechniqueRow(
        name=cls.name,
        kind=cls.kind,
        family=cls.family,
        stage=cls.stage.name.lower(),
        paper=cls.paper,
        maturity=cls.maturity,
        needs=sorted(n.value for n in cls.needs),
        touches=sorted(t.value for t in cls.touches),
        summary=said,
        knobs=[_knob(k) for k in cls.knobs()],
    )


def built_in() -> list[TechniqueRow]:
    """Our own techniques from their classes, by name: what the manifest holds."""
    from paredown import registry

    return [row(registry.technique(name)) for name in sorted(registry.BUILT_IN)]


def text(rows: list[TechniqueRow]) -> str:
    """Rows as the manifest holds them."""
    plain = [r.model_dump(exclude={"applies", "sites", "why_not"}) for r in rows]
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def rows() -> list[TechniqueRow]:
    """Every technique; loads torch only where a third party has added one."""
    ours = json.loads(MANIFEST.read_text(encoding="utf-8"))
    out = [TechniqueRow.model_validate(r) for r in ours]
    for entry in entry_points(group="paredown.techniques"):
        from paredown import registry

        out.append(row(registry.technique(entry.name)))
    return out


def rows_for(workload: Workload, graph: Graph) -> list[TechniqueRow]:
    """Every technique, and whether it applies to a captured workload: its sites, or why not."""
    from paredown import registry

    return [_answer(cls, workload, graph) for _, cls in sorted(registry.classes().items())]


def _answer(cls: type[Technique], workload: Workload, graph: Graph) -> TechniqueRow:
    technique, out = cls(), row(cls)
    why, count = technique.missing(workload), 0
    if why is None:
        try:
            found = technique.sites(workload, graph)
        except ParedownError as e:
            why = str(e)
        else:
            count = len(found.ok)
            if not found.ok:
                first = next(iter(found.refused.items()), None)
                why = f"{first[0]}: {first[1]}" if first else "it finds no site in this network"
    return out.model_copy(update={"applies": why is None, "sites": count, "why_not": why})


def _knob(knob: Any) -> dict[str, Any]:
    from paredown.technique import Choice, Range

    out: dict[str, Any] = {"name": knob.name, "default": knob.default, "help": knob.help}
    if isinstance(knob.space, Choice):
        out["choices"] = list(knob.space.options)
    elif isinstance(knob.space, Range):
        out["range"] = [knob.space.low, knob.space.high]
    return out
