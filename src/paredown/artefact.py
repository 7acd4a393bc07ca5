"""Artefacts: the folder that holds a pared network, saved whole or not at all, checked before use.

Layout (CONTRACTS, Artefacts): ``manifest.json``, ``recipe.yaml``, ``changes/``, ``run/`` (what the
backend needs), ``inputs.safetensors`` (the example inputs), ``carry/``, and the report beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paredown import manifest as manifests
from paredown.artefact_inputs import load_inputs
from paredown.artefact_save import publish, save, seal
from paredown.changes import load_changes
from paredown.editing import compose, replay
from paredown.errors import ArtefactError, ParedownError, UnknownName
from paredown.files import sha256
from paredown.manifest import REBUILT, Manifest, check
from paredown.runtime.backend import Executable
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
    inputs, kwargs = load_inputs(folder, manifest)
    return Workload(
        _Compiled(executable),
        inputs,
        kwargs,
        run=manifest.run,  # type: ignore[arg-type]
        name=manifest.name,
        scale=manifest.scale,
        aliases=aliases,
    )


def size_bytes(folder: Path | str) -> int:
    """Bytes on disk of what is needed to run an artefact (the ``size`` metric)."""
    return manifests.read(folder).bytes_to_run()
