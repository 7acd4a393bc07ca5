"""The catalogue: every paper's key, title, year, module and claim, with its last verdict here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from paredown.errors import UnknownName
from paredown.papers.findings import best
from paredown.result import PaperRow

FILE = Path(__file__).with_name("catalogue.yaml")


@cache
def _entries() -> dict[str, dict[str, Any]]:
    import yaml

    return {e["key"]: e for e in yaml.safe_load(FILE.read_text(encoding="utf-8"))}


def keys() -> list[str]:
    """All keys, sorted."""
    return sorted(_entries())


def entry(key: str) -> PaperRow:
    """One paper, ``module`` starting "planned:" where nothing is built; raises ``UnknownName``."""
    if key not in _entries():
        raise UnknownName("paper", key, keys())
    e = _entries()[key]
    finding = best(key)
    return PaperRow(
        key=key,
        title=e["title"],
        year=e["year"],
        module=e["module"] or f"planned: paredown.{e['family']}",
        claim=e["claim"],
        verdict=finding.verdict if finding else None,
    )


def catalogue() -> list[PaperRow]:
    """Every paper of the catalogue, by key."""
    return [entry(key) for key in keys()]
