"""Write docs/papers.md from the catalogue and the recorded findings."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from paredown.figure import Figure
from paredown.papers import card_keys, catalogue
from paredown.papers.findings import best
from paredown.result import Finding

RULE = "| - | - | - | - | - |"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "papers.md"


def number(value: float, unit: str) -> str:
    """A value for humans; seconds and bytes in fitting units."""
    for factor, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if unit == "s" and abs(value) >= factor:
            return f"{value / factor:.3g} {name}"
    for power, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if unit == "B" and abs(value) >= power:
            return f"{value / power:.3g} {name}"
    return f"{value:.4g} {unit}".rstrip()


def words(figure: Figure) -> str:
    """A figure with its interval, how it is known and its number of samples."""
    if figure.value is None:
        return f"unavailable: {figure.reason}"
    text = number(figure.value, figure.unit)
    if figure.spread is not None:
        low, high = (number(v, figure.unit) for v in figure.spread)
        text += f" ({low} to {high})"
    return f"{text}, {figure.how}" + (f", n = {figure.n}" if figure.n else "")


def cell(text: str) -> str:
    """Text that may stand in a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def section(finding: Finding) -> list[str]:
    """The section of one card: claim, verdict, figures."""
    machine = finding.fingerprint
    lines = [
        f"### {finding.key}: {finding.verdict}",
        "",
        f"Claim: {finding.claim}",
        "",
        f"Found ({finding.scale}, {finding.date[:10]}, {machine.cpu}, {machine.cores} cores, "
        f"{finding.seconds:.0f} s, seeds {', '.join(map(str, finding.seeds))}):",
        "",
    ]
    for row in finding.tables.get("checks", []):
        power = f"; could see {row['power']:.3g}" if row["power"] else ""
        lines.append(
            f"- {cell(row['check'])}: {row['value']:.4g} {row['unit']}, asked "
            f"{row['op']} {row['threshold']:.4g}{power}: **{row['outcome']}**"
        )
    lines += ["", "| measured | |", "| --- | --- |"]
    lines += [f"| {cell(name)} | {cell(words(f))} |" for name, f in finding.measured.items()]
    return [*lines, ""]


def page() -> str:
    """The whole page as Markdown."""
    rows = catalogue()
    found = [f for f in (best(key) for key in card_keys()) if f is not None]
    built = [r for r in rows if not r.module.startswith("planned:")]
    lines = [
        "# Papers",
        "",
        "Made by `scripts/papers_doc.py` from the catalogue and recorded findings; do not edit.",
        "",
        f"{len(rows)} papers, {len(built)} built here, {len(card_keys())} with a claim card, "
        f"{len(found)} of those run. A verdict is about the scaled-down experiment on the machine "
        "named, by thresholds fixed beforehand; `pare reproduce KEY` runs one.",
        "",
        "## Findings",
        "",
    ]
    for finding in found:
        lines += section(finding)
    lines += ["## Catalogue", ""]
    for year, group in groupby(sorted(rows, key=lambda r: (-r.year, r.key)), lambda r: r.year):
        head = "| key | paper | claim | code | verdict |"
        lines += [f"### {year}", "", head, RULE]
        for r in group:
            code = "planned" if r.module.startswith("planned:") else f"`{r.module}`"
            lines.append(
                f"| {r.key} | {cell(r.title)} | {cell(r.claim)} | {code} | {r.verdict or ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
