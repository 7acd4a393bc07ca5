"""Put the terminal output of the last `make demo` into the README, between its demo markers."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from paredown.report import terminal
from paredown.result import DownDoc

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- demo: written by scripts/readme_demo.py -->", "<!-- /demo -->"
WIDTH = 110


def block(doc: DownDoc) -> str:
    """The document as the terminal shows it, without colours, and the machine it is from."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, highlight=False, markup=False, no_color=True)
    terminal.show(doc, console)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    f = doc.fingerprint
    versions = ", ".join(f"{k} {v}" for k, v in sorted(f.versions.items()))
    machine = f"{f.cpu}, {doc.threads} threads, seed {doc.seed}; {versions}"
    return "\n".join(["```text", "$ make demo", *lines, "```", "", f"Measured on: {machine}."])


def main(arguments: list[str]) -> int:
    """Fill the block from the JSON that ``pare down --json FILE`` wrote."""
    if len(arguments) != 1:
        print("usage: readme_demo.py pared/demo.json", file=sys.stderr)
        return 2
    doc = DownDoc.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        print(f"{README} must hold one pair of demo markers", file=sys.stderr)
        return 2
    README.write_text(
        pattern.sub(lambda _: f"{START}\n{block(doc)}\n{END}", text), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
