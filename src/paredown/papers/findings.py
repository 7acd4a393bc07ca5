"""Recorded findings: ``findings/KEY.json``, a record per scale and machine, written atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from paredown.errors import ArtefactError
from paredown.result import Finding, Record

FOLDER = Path(__file__).with_name("findings")
SCALES = ("quick", "full")


class Findings(Record):
    """The file of one card."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    findings: list[Finding]


def read(key: str, folder: Path = FOLDER) -> list[Finding]:
    """All records of a card, none if it never ran; raises ``ArtefactError`` for a damaged file."""
    path = folder / f"{key}.json"
    if not path.exists():
        return []
    try:
        return Findings.model_validate_json(path.read_text(encoding="utf-8")).findings
    except ValidationError as e:
        where = ".".join(str(p) for p in e.errors()[0]["loc"])
        raise ArtefactError(
            f"{path} is damaged at {where or 'its start'}: delete it and run `pare reproduce {key}`"
        ) from e


def write(finding: Finding, folder: Path = FOLDER) -> Path:
    """Put a record into its card's file, over that of the same scale and machine."""
    mine = (finding.scale, finding.fingerprint.key)
    others = [f for f in read(finding.key, folder) if (f.scale, f.fingerprint.key) != mine]
    together = sorted([*others, finding], key=lambda f: (SCALES.index(f.scale), f.date))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.key}.json"
    text = Findings(findings=together).model_dump_json(by_alias=True, indent=1) + "\n"
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{finding.key}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def best(key: str, folder: Path = FOLDER) -> Finding | None:
    """The record that the docs show: of the largest scale, the latest."""
    found = read(key, folder)
    return max(found, key=lambda f: (SCALES.index(f.scale), f.date)) if found else None


def writable(folder: Path = FOLDER) -> bool:
    """Whether findings can be recorded there (an installed package may be read-only)."""
    return os.access(folder if folder.exists() else folder.parent, os.W_OK)
