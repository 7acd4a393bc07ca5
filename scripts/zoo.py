"""Count the networks: write src/paredown/zoo/counts.json and the table in docs/zoo.md.

Only networks that have no count yet are counted; ``--all`` counts all anew, ``--check`` writes
nothing and returns 1 where a file is not current (by the kept counts; a test counts anew).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paredown.zoo import _count, names, rows, variant

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
BEGIN, END = "<!-- table: scripts/zoo.py -->", "<!-- end of table -->"


def counts(*, anew: bool) -> str:
    """The text of the counts file."""
    kept = {} if anew or not _count.COUNTS.exists() else json.loads(_count.COUNTS.read_text())
    found = {n: list(kept.get(n) or _count.count(n)) for n in names()}
    lines = [f"  {json.dumps(n)}: {json.dumps(found[n])}" for n in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def table() -> str:
    """The page's table: every network, grouped by paper."""
    head = "| network | input | parameters | published | MACs | published | published by |"
    lines = [head, "|---|---|---:|---:|---:|---:|---|"]
    for r in sorted(rows(), key=lambda r: (r.paper.startswith("arXiv"), r.paper, r.params)):
        image = "x".join(map(str, r.input))
        numbers = (r.params, r.paper_params, r.macs, r.paper_macs)
        said = " | ".join(f"{n:,}" if n is not None else "" for n in numbers)
        why = f"; differs: {r.why}" if r.why else ""
        lines.append(f"| `{r.name}` ({r.paper}) | {image} | {said} | {r.source}{why} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write both files; with ``--check`` only compare."""
    wanted = counts(anew="--all" in arguments)
    if "--check" not in arguments:
        _count.COUNTS.write_text(wanted)
    there = _count.COUNTS.read_text() if _count.COUNTS.exists() else ""
    text = PAGE.read_text()
    if "--check" in arguments:
        stale = [str(p) for p, ok in ((_count.COUNTS, wanted == there), (PAGE, page(text) == text))
                 if not ok]  # fmt: skip
        if stale:
            print(f"not current: {', '.join(stale)}; run scripts/zoo.py", file=sys.stderr)
        return 1 if stale else 0
    PAGE.write_text(page(text))
    unknown = sorted(n for n in names() if variant(n).paper_params is None)
    if unknown:
        print(f"without a published count: {', '.join(unknown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
