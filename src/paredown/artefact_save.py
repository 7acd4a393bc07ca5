"""Writing artefacts: whole or not at all, the manifest last, as the mark of a whole one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paredown import manifest as manifests
from paredown.artefact_inputs import INPUTS, save_inputs
from paredown.changes import Record, save_changes
from paredown.errors import InputError
from paredown.files import sync
from paredown.manifest import Manifest, Role, SourceInfo, check
from paredown.quality import tensors
from paredown.recipe import Recipe, Target, dump
from paredown.result import Fingerprint, TensorInfo
from paredown.runtime.backend import Executable
from paredown.technique import Change
from paredown.workload import Workload


def save(
    folder: Path | str,
    *,
    workload: Workload,
    executable: Executable,
    recipe: Recipe,
    changes: Sequence[Change | Record] = (),
    fingerprint: Fingerprint | None = None,
) -> Manifest:
    """Write an artefact; ``folder`` holds all of it or is as it was before.

    Files of others in an existing folder stay. Raises ``InputError`` when it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".artefact-", dir=folder.parent))
    except OSError as e:
        raise InputError(f"cannot write {folder}: {(e.strerror or str(e)).lower()}") from None
    try:
        manifest = _write(temporary, workload, executable, recipe, changes, fingerprint)
        _install(temporary, folder)
    except OSError as e:
        raise InputError(f"cannot write {folder}: {(e.strerror or str(e)).lower()}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _write(
    folder: Path,
    workload: Workload,
    executable: Executable,
    recipe: Recipe,
    changes: Sequence[Change | Record],
    fingerprint: Fingerprint | None,
) -> Manifest:
    source = workload.source
    if recipe.target is None and source is not None:
        recipe = recipe.model_copy(update={"target": Target(ref=source.ref, sha256=source.sha256)})
    lower = {"backend": executable.backend, "threads": executable.threads}
    recipe = recipe.model_copy(update={"lower": recipe.lower.model_copy(update=lower)})
    files: dict[Path, Role] = {dump(recipe, folder / "recipe.yaml"): "recipe"}
    (folder / "run").mkdir()
    run = [folder / "run" / p for p in executable.save(folder / "run")]
    stored = [p for p in run if p.suffix == ".safetensors"]
    files |= dict.fromkeys(save_changes(folder / "changes", changes, stored), "change")
    files |= dict.fromkeys(run, "run")
    call = save_inputs(folder / INPUTS, workload)
    if (folder / INPUTS).exists():
        files[folder / INPUTS] = "input"
    files |= dict.fromkeys(_carry(folder / "carry", workload.carry), "carry")
    manifest = Manifest(
        name=workload.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=executable.backend,
        threads=executable.threads,
        run=workload.run,
        source=source
        and SourceInfo(ref=source.ref, sha256=source.sha256, random_weights=source.random_weights),
        inputs=_infos((list(workload.inputs), workload.kwargs)),
        outputs=_infos(executable(*workload.inputs, **workload.kwargs)),
        call=call,
        aliases={k: list(v) for k, v in workload.aliases.items()},
        scale=workload.scale,
        files=dict(manifests.describe(folder, p, r) for p, r in files.items()),
        fingerprint=fingerprint,
    ).write(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    return manifest


def _infos(value: Any) -> list[TensorInfo]:
    return [
        TensorInfo(name=n or "0", shape=list(t.shape), dtype=str(t.dtype).removeprefix("torch."))
        for n, t in tensors(value)
    ]


def _carry(folder: Path, paths: Iterable[str]) -> list[Path]:
    out: list[Path] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"a file to carry along is missing: {path}")
        if manifests.is_pickle(path):
            raise InputError(f"{path} is a pickle: an artefact does not carry it along")
        folder.mkdir(exist_ok=True)
        out.append(Path(shutil.copyfile(path, folder / path.name)))
    return out


def _install(new: Path, folder: Path) -> None:
    """Move a finished artefact into place; the manifest comes last, as the mark of a whole one."""
    new.chmod(0o755)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        os.replace(new, folder)
        sync(folder.parent)
        return
    if not folder.is_dir():
        raise InputError(f"cannot write {folder}: it is a file")
    (folder / manifests.NAME).unlink(missing_ok=True)
    sync(folder)
    for part in (*manifests.OWNED, INPUTS):
        old = folder / part
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    entries = sorted(new.iterdir(), key=lambda p: p.name == manifests.NAME)
    for path in entries:
        os.replace(path, folder / path.name)
    sync(folder)


def publish(artefact: Path | str, out: Path | str) -> Manifest:
    """Copy an artefact into another folder, which may hold other files; atomic like ``save``."""
    artefact, out = Path(artefact), Path(out)
    manifest = check(artefact)
    temporary = Path(tempfile.mkdtemp(prefix=".artefact-", dir=out.parent))
    try:
        for name in (*manifest.files, manifests.NAME):
            to = temporary / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artefact / name, to)
            with open(to, "rb") as f:
                os.fsync(f.fileno())
        _install(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def seal(folder: Path | str, names: Iterable[str] = ("report.html", "result.json")) -> Manifest:
    """Add the report's files to the manifest once they are written: they are checked too."""
    folder = Path(folder)
    manifest = manifests.read(folder)
    found = [folder / n for n in names if (folder / n).is_file()]
    files = {**manifest.files, **dict(manifests.describe(folder, p, "report") for p in found)}
    return manifest.model_copy(update={"files": files}).write(folder)
