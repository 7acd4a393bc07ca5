"""Count the networks: write src/paredown/zoo/counts.json and the table in docs/zoo.md.

Only networks that have no count yet are counted; names given as arguments are counted anew, with
``--all`` every one. ``--check`` writes nothing and returns 1 where a file is not current (by the
kept counts; a test counts anew). Runs at the same time wait for each other, and each reads the
networks and the counts only when it is alone, so none loses what another counted.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paredown.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "zoo.md"
COUNTS = ROOT / "src" / "paredown" / "zoo" / "counts.json"
BEGIN, END = "<!-- table: scripts/zoo.py -->", "<!-- end of table -->"


@contextmanager
def alone() -> Iterator[None]:
    """Holds the folder of the counts against other runs; the lock ends with the process."""
    held = os.open(COUNTS.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def counts(anew: set[str]) -> str:
    """The text of the counts file; ``anew`` are counted whatever is kept of them."""
    from paredown.zoo import _count, names

    kept = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    kept = {n: v for n, v in kept.items() if n not in anew}
    found = {n: list(kept.get(n) or _count.count(n)) for n in names()}
    lines = [f"  {json.dumps(n)}: {json.dumps(found[n])}" for n in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def table() -> str:
    """The page's table: every network, grouped by paper."""
    from paredown.zoo import rows

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
    with alone():
        zoo = importlib.import_module("paredown.zoo")
        asked = {a for a in arguments if not a.startswith("--")}
        for name in asked:
            zoo.variant(name)
        wanted = counts(set(zoo.names()) if "--all" in arguments else asked)
        text = PAGE.read_text()
        if "--check" in arguments:
            current = {COUNTS: wanted == COUNTS.read_text(), PAGE: page(text) == text}
            stale = [str(path) for path, ok in current.items() if not ok]
            if stale:
                print(f"not current: {', '.join(stale)}; run scripts/zoo.py", file=sys.stderr)
            return 1 if stale else 0
        write_text(COUNTS, wanted)
        write_text(PAGE, page(text))
    unknown = sorted(n for n in zoo.names() if zoo.variant(n).paper_params is None)
    if unknown:
        print(f"without a published count: {', '.join(unknown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
