"""Writing files so that a kill leaves the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from paredown.errors import InputError


def write_text(path: Path | str, text: str) -> Path:
    """Write a text file atomically: a temporary file beside it, fsync, rename."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise InputError(f"cannot write {path}: {_words(e)}") from None
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as e:
        Path(name).unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise InputError(f"cannot write {path}: {_words(e)}") from None
        raise
    sync(path.parent)
    return path


def sync(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def writable(folder: Path | str, *, keep: bool = True) -> Path:
    """Make ``folder`` if need be and prove that it can be written to; ``InputError`` if not.

    Without ``keep`` a folder that was not there is taken away again: only the proof is wanted.
    """
    folder = Path(folder)
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".write-test-", dir=folder):
            pass
        if not keep:
            for made in missing:
                made.rmdir()
    except OSError as e:
        raise InputError(f"cannot write to {folder}: {_words(e)}") from None
    return folder


def _words(e: OSError) -> str:
    return (e.strerror or str(e)).lower()
