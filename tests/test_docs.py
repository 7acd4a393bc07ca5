"""The snippets of the README and the pages run: Python blocks, and console blocks' commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<mark>no-run|file: [\w.-]+) -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PARE = "import sys; from paredown.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Snippet:
    """One block: its language, text, and the name of the file it is also written to."""

    kind: str
    body: str
    file: str | None


def snippets(page: Path) -> list[Snippet]:
    """The blocks of a page that are executed."""
    out = []
    for m in FENCE.finditer(page.read_text(encoding="utf-8")):
        mark = m["mark"] or ""
        if m["kind"] in ("python", "console") and mark != "no-run":
            out.append(Snippet(m["kind"], m["body"], mark.removeprefix("file: ") or None))
    return out


def environment() -> dict[str, str]:
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "100"}


def run_page(blocks: list[Snippet], folder: Path) -> None:
    """Run a page's blocks in order; Python blocks in one process, commands each in their own."""
    for block in blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.body, encoding="utf-8")
    python = "\n\n".join(b.body for b in blocks if b.kind == "python")
    commands = [[sys.executable, "-c", python]] if python else []
    for block in blocks:
        if block.kind == "console":
            for line in block.body.splitlines():
                if line.startswith("$ "):
                    words = shlex.split(line[2:], comments=True)
                    assert words[0] == "pare", f"a console block runs pare, not {words[0]!r}"
                    commands.append([sys.executable, "-c", PARE, *words[1:]])
    for command in commands:
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_the_snippets_of_a_page_run(page, tmp_path):
    run_page(snippets(page), tmp_path)


def test_a_failing_snippet_is_seen(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_page([Snippet("python", "1 / 0", None)], tmp_path)


def test_pages_with_snippets_are_found():
    assert {p.name for p in PAGES if snippets(p)} >= {"quickstart.md", "budgets.md", "verbs.md"}


def test_the_readme_has_one_demo_block():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- demo: written by scripts/readme_demo.py -->") == 1
    assert text.count("<!-- /demo -->") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
