"""Change records on disk: what each step decided and edited, enough to replay it without search.

``changes/NN-technique.json`` holds edits, decision values and renames of step NN, and
``changes/NN-technique.safetensors`` its decision tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paredown.errors import ArtefactError
from paredown.files import write_text
from paredown.technique import Change, Decisions, Edit

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One recorded change, without the workload it made."""

    technique: str
    edits: tuple[Edit, ...]
    decisions: Decisions
    lowers: tuple[str, ...]
    touched: dict[str, tuple[str, ...]]
    renames: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def record(change: Change) -> Record:
    """The record of a change."""
    return Record(
        technique=change.technique,
        edits=tuple(change.edits),
        decisions=change.decisions,
        lowers=tuple(sorted(x.value for x in change.lowers)),
        touched={s: tuple(sorted(t.value for t in ts)) for s, ts in change.touched.items()},
        renames=dict(change.renames),
        notes=tuple(change.notes),
    )


def save_changes(folder: Path | str, changes: Iterable[Change | Record]) -> list[Path]:
    """Write one record per change into an artefact's ``changes/``; returns the files."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for i, change in enumerate(changes):
        r = change if isinstance(change, Record) else record(change)
        stem = f"{i:02d}-{r.technique or 'change'}"
        if r.decisions.tensors:
            path = folder / f"{stem}.safetensors"
            save_file({k: t.detach().clone() for k, t in r.decisions.tensors.items()}, path)
            written.append(path)
        data = {
            "schema": SCHEMA,
            "technique": r.technique,
            "lowers": r.lowers,
            "touched": r.touched,
            "renames": r.renames,
            "notes": r.notes,
            "values": r.decisions.values,
            "tensors": sorted(r.decisions.tensors),
            "edits": [_short(e) for e in r.edits],
        }
        text = json.dumps(data, indent=1, allow_nan=False)
        written.append(write_text(folder / f"{stem}.json", text + "\n"))
    return written


def load_changes(folder: Path | str) -> list[Record]:
    """The records in ``folder``, in order; ``ArtefactError`` when one is damaged."""
    folder = Path(folder)
    return [_load(path) for path in sorted(folder.glob("*.json"))]


def _load(path: Path) -> Record:
    from safetensors.torch import load_file

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ArtefactError(f"{path.name}: unknown schema {data['schema']!r}: upgrade paredown")
        tensors = load_file(path.with_suffix(".safetensors")) if data["tensors"] else {}
        return Record(
            technique=data["technique"],
            edits=tuple(_edit(e) for e in data["edits"]),
            decisions=Decisions(data["values"], tensors),
            lowers=tuple(data["lowers"]),
            touched={k: tuple(v) for k, v in data["touched"].items()},
            renames={k: tuple(v) for k, v in data["renames"].items()},
            notes=tuple(data["notes"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as e:
        if isinstance(e, ArtefactError):
            raise
        raise ArtefactError(f"damaged change record {path.name}: {e}") from None


_OPS = frozenset({"swap", "tensor", "attr", "attach", "tie"})
_EMPTY = asdict(Edit("swap", ""))


def _short(edit: Edit) -> dict[str, Any]:
    """An edit as data, its empty fields left out; ``op`` and ``path`` always there."""
    data = asdict(edit)
    return {k: v for k, v in data.items() if k in ("op", "path") or v != _EMPTY[k]}


def _edit(data: dict[str, Any]) -> Edit:
    known = {f.name for f in fields(Edit)}
    if set(data) - known or data.get("op") not in _OPS:
        raise ArtefactError(f"a change record holds an edit this paredown does not know: {data}")
    if data.get("shape") is not None:
        data = {**data, "shape": tuple(int(d) for d in data["shape"])}
    return Edit(**data)
