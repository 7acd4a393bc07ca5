"""How a language model would be served: what it stores, splits of a node, streams, two kinds."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from paredown.figure import Figure
from paredown.report import units
from paredown.report.cells import known, legend, table
from paredown.result import ServingPlanDoc


def serving_plan(doc: ServingPlanDoc) -> list[RenderableType]:
    """Tables of what applies; what does not fit is said below."""
    head = Text(
        f"{doc.title}: batch {doc.batch}, {doc.context} tokens, 16 bits, on {doc.device} "
        f"({doc.memory})",
        style="bold",
    )
    shown: list[Figure] = []
    parts: list[RenderableType] = [head, _figures("", doc.figures)]
    shown += doc.figures.values()
    if doc.splits:
        rows = table("Splits of the node", "tensor", "pipeline", "first token", "each later",
                     "throughput", "bound", right=range(5))  # fmt: skip
        for s in doc.splits:
            rows.add_row(str(s.tensor), str(s.pipeline), units.figure(s.first_s),
                         units.figure(s.token_s), known(s.tokens_s), s.bound)  # fmt: skip
            shown.append(s.token_s)
        parts += ["", rows]
    if doc.streamed:
        parts += ["", _figures("Weights streamed layer by layer", doc.streamed)]
        shown += doc.streamed.values()
    if doc.exchange:
        rows = table("Experts: tokens exchanged", "link", "a layer", "a token at least",
                     right=(1, 2))  # fmt: skip
        for e in doc.exchange:
            rows.add_row(e.link, units.figure(e.layer_s), units.figure(e.token_s))
        parts += ["", rows]
    if doc.pools:
        rows = table("Attention apart", "devices", "weights", "attention", "batch", "each token",
                     "throughput", "per 1000 USD", "link", right=range(1, 8))  # fmt: skip
        for p in doc.pools:
            link = f"{units.size(p.link_bytes_s.known())}/s" if p.link_bytes_s else ""
            rows.add_row(p.devices, str(p.model), str(p.attention or ""), str(p.batch),
                         units.figure(p.token_s), known(p.tokens_s),
                         units.digits(1000 * p.tokens_s_per_usd.known()), link)  # fmt: skip
        parts += ["", rows]
    return [*parts, legend(shown), *map(Text, doc.notes)]


def _figures(title: str, figures: dict[str, Figure]) -> RenderableType:
    rows = table(title, "", "")
    for name, figure in figures.items():
        rows.add_row(name, known(figure))
    return rows
