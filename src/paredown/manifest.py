"""What an artefact folder says of itself, and the check that it is whole and safe.

Checked without running anything: every path stays inside the folder, no file is or hides a pickle,
every listed file is there with its size and SHA-256, and nothing else lies among them.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError

from paredown.errors import ArtefactError
from paredown.files import sha256, write_text
from paredown.result import Document, Fingerprint, Record, TensorInfo

NAME = "manifest.json"
OWNED = ("run", "changes", "carry")
"""Subfolders that hold nothing but listed files."""

PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".pt2", ".ckpt", ".joblib", ".dill", ".mar"})
Role = Literal["run", "recipe", "change", "input", "carry", "report"]


class FileInfo(Record):
    """One file of an artefact: what it is for, its size in bytes and its hash."""

    role: Role
    bytes: int
    sha256: str


class SourceInfo(Record):
    """The target the artefact was made from, as the user named it."""

    ref: str
    sha256: str | None = None
    random_weights: bool = False


class Manifest(Document):
    """``manifest.json``; ``digest`` is the hash of all other fields, so that a change shows."""

    kind: Literal["artefact"] = "artefact"
    name: str
    created: str
    backend: str
    threads: int
    run: str = "forward"
    source: SourceInfo | None = None
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    call: dict[str, Any] | None = None
    """Nesting of the example call, whose tensors are in ``inputs.safetensors``."""
    aliases: dict[str, list[str]] = Field(default_factory=dict)
    scale: float | None = None
    files: dict[str, FileInfo]
    fingerprint: Fingerprint | None = None
    digest: str = ""

    def signed(self) -> Manifest:
        """The same with ``digest`` filled in."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        data = self.model_dump(by_alias=True, exclude={"digest"}, mode="json")
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> Manifest:
        """Sign and write ``manifest.json`` into ``folder``, atomically."""
        out = self.signed()
        write_text(folder / NAME, out.to_json() + "\n")
        return out

    def bytes_to_run(self) -> int:
        """Bytes of the files needed to run: the executable's, and edits where it is rebuilt."""
        roles = {"run"}
        total = sum(f.bytes for f in self.files.values() if f.role in roles)
        if self.backend in REBUILT:
            edits = (f for p, f in self.files.items() if f.role == "change" and p.endswith(".json"))
            total += sum(f.bytes for f in edits)
        return total


REBUILT = frozenset({"eager", "inductor"})
"""Backends whose artefacts are rebuilt on the user's own source."""


def describe(folder: Path, path: Path, role: Role) -> tuple[str, FileInfo]:
    """The entry of one file of ``folder``."""
    info = FileInfo(role=role, bytes=path.stat().st_size, sha256=sha256(path))
    return path.relative_to(folder).as_posix(), info


def read(folder: Path | str) -> Manifest:
    """The manifest of a folder; ``ArtefactError`` when it is missing or damaged."""
    folder = Path(folder)
    path = folder / NAME
    if not folder.is_dir():
        raise ArtefactError(f"no such artefact folder: {folder}")
    if not path.exists():
        raise ArtefactError(f"{folder} is no artefact: it has no {NAME}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data.get("schema") if isinstance(data, dict) else None
        if isinstance(schema, int) and schema > 1:
            raise ArtefactError(
                f"{path}: schema {schema} is newer than this paredown reads: upgrade"
            )
        manifest = Manifest.model_validate(data)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ArtefactError(f"{path} is damaged: {str(e).splitlines()[0]}") from None
    except ValidationError as e:
        first = e.errors()[0]
        at = ".".join(str(p) for p in first["loc"])
        raise ArtefactError(f"{path} is damaged: {at}: {first['msg'].lower()}") from None
    if manifest.digest != manifest.signed().digest:
        raise ArtefactError(f"{path} is damaged: its own hash does not match")
    return manifest


def check(folder: Path | str) -> Manifest:
    """Refuse a folder that is damaged, incomplete or unsafe; nothing of it is run or unpickled."""
    folder = Path(folder)
    manifest = read(folder)
    for name in manifest.files:
        _inside(folder, name)
    _no_pickle(folder)
    for name, info in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"{folder}: {name} is missing")
        if path.stat().st_size != info.bytes:
            size = path.stat().st_size
            raise ArtefactError(
                f"{folder}: {name} has {size} bytes, the manifest says {info.bytes}"
            )
        if sha256(path) != info.sha256:
            raise ArtefactError(f"{folder}: {name} is damaged: its SHA-256 does not match")
    for part in OWNED:
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in manifest.files:
                raise ArtefactError(f"{folder}: {name} is not in the manifest")
    return manifest


def _inside(folder: Path, name: str) -> None:
    """Refuse a listed path that is absolute, climbs, or reaches out through a link."""
    pure = PurePosixPath(name)
    bad = pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts
    if bad or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ArtefactError(f"{folder}: the path {name!r} leaves the artefact's folder")


def _no_pickle(folder: Path) -> None:
    """Refuse any file in the folder that is a pickle by its name or its bytes."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ArtefactError(f"{folder}: the path {name!r} leaves the artefact's folder")
        if path.is_file() and is_pickle(path):
            raise ArtefactError(f"{folder}: {name} is a pickle: refused, pickles can run code")


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, a torch archive or an object array, by name or content.

    The bytes are read, never loaded.
    """
    if path.suffix.lower() in PICKLES:
        return True
    with open(path, "rb") as f:
        head = f.read(128)
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as z:
                return any(n.endswith((".pkl", ".pickle")) for n in z.namelist())
        except zipfile.BadZipFile:
            return False
    if head.startswith(b"\x93NUMPY"):
        return b"'|O'" in head
    return _parses(path)


def _parses(path: Path) -> bool:
    """Whether the bytes read as a pickle that could import or call something.

    It starts with a protocol mark, or is ASCII opcodes up to the file's very end. Weights and text
    that begin like one by chance fail within a few opcodes.
    """
    marked = calls = False
    with open(path, "rb") as f, warnings.catch_warnings():
        # Text that is no pickle may hold odd escapes on its way to an invalid opcode.
        warnings.simplefilter("ignore")
        try:
            for i, (op, _, _) in enumerate(pickletools.genops(f)):
                marked = marked or (i == 0 and op.name == "PROTO")
                calls = calls or op.name in _CALLS
                if op.name == "STOP":
                    return marked or (calls and not f.read(64).strip())
                if i > 1000:
                    return marked
        except (ValueError, OverflowError, MemoryError):
            return False
    return False


_CALLS = frozenset(
    {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
)
