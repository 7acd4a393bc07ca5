"""Change records on disk: what each step decided and edited, enough to replay it without search.

``changes/NN-technique.json`` holds edits, decision values and renames of step NN, and
``changes/NN-technique.safetensors`` its decision tensors. A tensor that stands in another file
already (weights that recovery trained and no later step touched) is named, not stored twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.errors import ArtefactError
from paredown.files import write_text
from paredown.technique import Change, Decisions, Edit

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
NAMED_FROM = 1024
"""Bytes from which a tensor is looked for elsewhere: a name must be cheaper than the tensor."""


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


def save_changes(
    folder: Path | str, changes: Iterable[Change | Record], beside: Iterable[Path] = ()
) -> list[Path]:
    """Write one record per change into an artefact's ``changes/``; returns the files.

    Tensors that are in a safetensors file ``beside``, bit for bit, are named there.
    """
    from paredown.runtime import sparse_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records = [c if isinstance(c, Record) else record(c) for c in changes]
    stored = _Stored(folder)
    stored.add(beside, [r.decisions.tensors for r in records])
    written: list[Path] = []
    for i, r in enumerate(records):
        stem = f"{i:02d}-{r.technique or 'change'}"
        path = folder / f"{stem}.safetensors"
        same = {k: at for k, t in r.decisions.tensors.items() if (at := stored.find(t))}
        own = {k: t.detach().clone() for k, t in r.decisions.tensors.items() if k not in same}
        if own:
            sparse_file.save({k: t.contiguous() for k, t in own.items()}, path)
            stored.note(path, own)
            written.append(path)
        data = {
            "schema": SCHEMA,
            "technique": r.technique,
            "lowers": r.lowers,
            "touched": r.touched,
            "renames": r.renames,
            "notes": r.notes,
            "values": r.decisions.values,
            "tensors": sorted(own),
            "same": same,
            "edits": [_short(e) for e in r.edits],
        }
        text = json.dumps(data, indent=1, allow_nan=False)
        written.append(write_text(folder / f"{stem}.json", text + "\n"))
    return written


@dataclass
class _Stored:
    """Which tensors stand in which files, by their content; files are named from ``folder``."""

    folder: Path
    known: dict[bytes, tuple[str, str]] = field(default_factory=dict)

    def add(self, files: Iterable[Path], wanted: Iterable[Mapping[str, Tensor]]) -> None:
        """Read what might be wanted: only tensors of a shape that is."""
        from paredown.runtime import sparse_file

        shapes = {tuple(t.shape) for ts in wanted for t in ts.values() if t.nbytes >= NAMED_FROM}
        for path in files if shapes else ():
            with sparse_file.opened(path) as f:
                for k in f.names:
                    if f.shape(k) in shapes:
                        self.note(path, {k: f.get(k)})

    def note(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Tensors are in a file now."""
        name = Path(os.path.relpath(path, self.folder)).as_posix()
        for k, t in tensors.items():
            if t.nbytes >= NAMED_FROM:
                self.known.setdefault(_content(t), (name, k))

    def find(self, t: Tensor) -> tuple[str, str] | None:
        """The file and the name under which a tensor is stored already."""
        return self.known.get(_content(t)) if self.known and t.nbytes >= NAMED_FROM else None


def _content(t: Tensor) -> bytes:
    import torch

    found = hashlib.blake2b(f"{t.dtype} {tuple(t.shape)} ".encode())
    found.update(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def load_changes(folder: Path | str) -> list[Record]:
    """The records in ``folder``, in order; ``ArtefactError`` when one is damaged."""
    folder = Path(folder)
    return [_load(path) for path in sorted(folder.glob("*.json"))]


def _load(path: Path) -> Record:
    from safetensors import SafetensorError

    from paredown.runtime import sparse_file

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ArtefactError(f"{path.name}: unknown schema {data['schema']!r}: upgrade paredown")
        tensors = sparse_file.load(path.with_suffix(".safetensors")) if data["tensors"] else {}
        tensors |= _elsewhere(path, data.get("same", {}))
        return Record(
            technique=data["technique"],
            edits=tuple(_edit(e) for e in data["edits"]),
            decisions=Decisions(data["values"], tensors),
            lowers=tuple(data["lowers"]),
            touched={k: tuple(v) for k, v in data["touched"].items()},
            renames={k: tuple(v) for k, v in data["renames"].items()},
            notes=tuple(data["notes"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OSError, SafetensorError) as e:
        if isinstance(e, ArtefactError):
            raise
        raise ArtefactError(f"damaged change record {path.name}: {e}") from None


def _elsewhere(path: Path, same: Mapping[str, tuple[str, str]]) -> dict[str, Tensor]:
    """The tensors that a record names in other files of its artefact."""
    from paredown.runtime import sparse_file

    found: dict[str, Tensor] = {}
    for file in sorted({file for file, _ in same.values()}):
        there = path.parent / file
        if not there.resolve().is_relative_to(path.parent.parent.resolve()):
            raise ArtefactError(f"{path.name}: {file} lies outside of the artefact: refused")
        with sparse_file.opened(there) as f:
            found |= {k: f.get(name) for k, (at, name) in same.items() if at == file}
    return found


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
