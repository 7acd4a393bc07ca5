"""Artefacts: the folder that holds a pared network, saved whole or not at all, checked before use.

Layout (CONTRACTS, Artefacts): ``manifest.json``, ``recipe.yaml``, ``changes/``, ``run/`` (what the
backend needs), ``inputs.safetensors`` (the example inputs), ``carry/``, and the report beside them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown import manifest as manifests
from paredown.changes import Record, load_changes, save_changes
from paredown.editing import compose, replay
from paredown.errors import ArtefactError, InputError, ParedownError, UnknownName
from paredown.files import sha256, sync
from paredown.manifest import REBUILT, Manifest, SourceInfo, check
from paredown.quality import tensors
from paredown.recipe import Recipe, Target, dump
from paredown.result import Fingerprint, TensorInfo
from paredown.runtime.backend import Executable
from paredown.technique import Change
from paredown.workload import TargetRef, Workload

__all__ = [
    "Loaded",
    "check",
    "load",
    "publish",
    "rebuilt",
    "save",
    "seal",
    "size_bytes",
    "source_of",
]

INPUTS = "inputs.safetensors"


@dataclass
class Loaded:
    """An artefact read back: called like the original model, for any batch.

    ``executable`` takes the compiled shapes only and is what is timed; ``module`` is the same
    behind the original's signature; ``workload`` holds the example inputs.
    """

    executable: Executable
    manifest: Manifest
    workload: Workload
    module: nn.Module
    folder: Path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pared network like the original."""
        return self.module(*args, **kwargs)


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
    files = [(dump(recipe, folder / "recipe.yaml"), "recipe")]
    (folder / "run").mkdir()
    run = [folder / "run" / p for p in executable.save(folder / "run")]
    stored = [p for p in run if p.suffix == ".safetensors"]
    files += [(p, "change") for p in save_changes(folder / "changes", changes, stored)]
    files += [(p, "run") for p in run]
    call = _save_inputs(folder / INPUTS, workload)
    if (folder / INPUTS).exists():
        files.append((folder / INPUTS, "input"))
    files += [(p, "carry") for p in _carry(folder / "carry", workload.carry)]
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
        files=dict(manifests.describe(folder, p, r) for p, r in files),  # type: ignore[arg-type]
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


def _save_inputs(path: Path, workload: Workload) -> dict[str, Any] | None:
    """Write example tensors; returns their nesting, None for inputs that are not tensors."""
    from safetensors.torch import save_file

    from paredown.runtime import tree

    leaves: list[torch.Tensor] = []
    try:
        spec = tree.flatten((list(workload.inputs), workload.kwargs), leaves, {})
    except InputError:
        # Only eager runs such inputs, and its artefacts take them from the source.
        return None
    save_file({str(i): t.detach().contiguous().clone() for i, t in enumerate(leaves)}, path)
    return spec


def _load_inputs(folder: Path, manifest: Manifest) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from paredown.runtime import tree

    if manifest.call is None:
        return (), {}
    try:
        found = load_file(folder / INPUTS)
        leaves = [found[str(i)] for i in range(len(found))]
        args, kwargs = tree.rebuild(manifest.call, leaves, tree.find_classes(manifest.call))
    except (KeyError, IndexError, TypeError, ValueError, OSError, SafetensorError) as e:
        raise ArtefactError(f"{folder}: the example inputs are damaged: {e}") from None
    return tuple(args), dict(kwargs)


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


def size_bytes(folder: Path | str) -> int:
    """Bytes on disk of what is needed to run an artefact (the ``size`` metric)."""
    return manifests.read(folder).bytes_to_run()


def load(
    folder: Path | str,
    *,
    threads: int | None = None,
    source: Workload | str | None = None,
) -> Loaded:
    """Check an artefact, then read it back into its backend.

    ``source`` is the workload or target reference it was made from: eager and inductor artefacts
    are rebuilt on it; left out, the recorded reference is used if its file still has the recorded
    hash. ``threads`` is the artefact's own when left out. Raises ``ArtefactError`` before anything
    is run.
    """
    from paredown import runtime
    from paredown.runtime.facade import Facade

    folder = Path(folder)
    manifest = check(folder)
    try:
        backend = runtime.backend(manifest.backend)
    except UnknownName as e:
        raise ArtefactError(f"{folder}: {e}") from None
    missing = backend.available()
    if missing is not None:
        raise ArtefactError(f"{folder} runs on {manifest.backend}: {missing}")
    count = threads if threads is not None else manifest.threads
    if manifest.backend in REBUILT:
        workload = _rebuilt(folder, source_of(folder, source=source, manifest=manifest))
        executable = backend.load(folder / "run", threads=count, workload=workload)
    else:
        executable = backend.load(folder / "run", threads=count)
        workload = _standalone(folder, manifest, executable, source)
    module = Facade(executable, workload)
    workload = replace(workload, model=module, source=TargetRef(str(folder)))
    return Loaded(executable, manifest, workload, module, folder)


def source_of(
    folder: Path | str,
    *,
    source: Workload | str | None = None,
    manifest: Manifest | None = None,
) -> Workload:
    """The workload an artefact was made from, built again from the user's own file.

    Never from a file of the folder. ``source`` names it; otherwise the recorded reference must
    still be there with the same hash.
    """
    from paredown import targets

    folder = Path(folder)
    manifest = manifest or check(folder)
    if isinstance(source, Workload):
        return source
    if source is not None:
        return targets.resolve(source)
    ref = manifest.source
    if ref is None:
        raise ArtefactError(
            f"{folder} was made from a Python object: give source=, the workload or its reference"
        )
    try:
        kind = targets.kind_of(ref.ref)
    except ParedownError as e:
        raise ArtefactError(
            f"{folder} needs its source {ref.ref}: {e}; name it with source="
        ) from None
    if kind in ("python", "onnx"):
        path, _ = targets.split(ref.ref)
        if path.resolve().is_relative_to(folder.resolve()):
            raise ArtefactError(
                f"{folder} names a file of its own as source: refused, not imported"
            )
        if sha256(path) != ref.sha256:
            raise ArtefactError(
                f"{folder} was made from another version of {path}: name the source if you mean it"
            )
    elif kind == "artefact":
        raise ArtefactError(f"{folder} was made from the artefact {ref.ref}, which has no source")
    workload = targets.resolve(ref.ref, random_weights=ref.random_weights)
    if workload.source is not None and workload.source.sha256 != ref.sha256:
        raise ArtefactError(
            f"{folder} was made from another version of {ref.ref}: name the source if you mean it"
        )
    return workload


def rebuilt(folder: Path | str, *, source: Workload | str | None = None) -> Workload:
    """The rewritten network of any artefact, replayed on its source; tensors hold no values."""
    return _rebuilt(Path(folder), source_of(folder, source=source))


def _rebuilt(folder: Path, source: Workload) -> Workload:
    """The source with the recorded edits carried out: structure only, tensors are in ``run/``."""
    from paredown import registry

    teacher = source.model if source.original is None else source.original
    workload = replace(source.copy(), original=teacher)
    for record in load_changes(folder / "changes"):
        if record.technique:
            try:
                # Loading the technique registers the forms that its edits name.
                registry.technique(record.technique)
            except UnknownName as e:
                raise ArtefactError(f"{folder}: {e}") from None
        replay(workload.model, record.edits)
        workload.aliases = compose(workload.aliases, record.renames)
    return workload


class _Compiled(nn.Module):
    """Stands for the model of an artefact that needs no source."""

    def __init__(self, executable: Executable) -> None:
        super().__init__()
        self.executable = executable

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.executable(*args, **kwargs)


def _standalone(
    folder: Path, manifest: Manifest, executable: Executable, source: Workload | str | None
) -> Workload:
    aliases = {k: tuple(v) for k, v in manifest.aliases.items()}
    if isinstance(source, Workload):
        return replace(source, aliases=aliases)
    inputs, kwargs = _load_inputs(folder, manifest)
    return Workload(
        _Compiled(executable),
        inputs,
        kwargs,
        run=manifest.run,  # type: ignore[arg-type]
        name=manifest.name,
        scale=manifest.scale,
        aliases=aliases,
    )
