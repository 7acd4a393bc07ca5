"""The steps of a recipe, done once and shared by every trial that begins with them.

Kept like an artefact's records: edits to replay on the source, and all tensors in safetensors.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from paredown.changes import load_changes, save_changes
from paredown.editing import compose, replay
from paredown.technique import Change, Lowers, Touches
from paredown.workload import Workload

TENSORS = "tensors.safetensors"


def keep(folder: Path, workload: Workload, changes: list[Change]) -> None:
    """Write a rewritten workload's records and tensors; the folder appears whole or not at all."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".keep-", dir=folder.parent))
    named = dict(_named(workload.model))
    save_file({k: t.detach().contiguous().clone() for k, t in named.items()}, temporary / TENSORS)
    save_changes(temporary / "changes", changes, beside=[temporary / TENSORS])
    try:
        os.rename(temporary, folder)
    except OSError:
        # Another trial was faster: the same recipe, seed and source give the same tensors.
        shutil.rmtree(temporary)


def restore(folder: Path, original: Workload) -> tuple[Workload, list[Change]]:
    """The rewritten workload rebuilt on a copy of the original, with its changes."""
    from safetensors.torch import load_file

    from paredown import registry

    current = replace(original.copy(), original=original.original or original.model)
    changes: list[Change] = []
    for r in load_changes(folder / "changes"):
        # Loading the technique registers the forms that its edits name.
        registry.technique(r.technique)
        replay(current.model, r.edits)
        current.aliases = compose(current.aliases, r.renames)
        touched = {s: frozenset(Touches(t) for t in ts) for s, ts in r.touched.items()}
        changes.append(
            Change(
                current,
                list(r.edits),
                r.decisions,
                frozenset(Lowers(x) for x in r.lowers),
                touched,
                dict(r.renames),
                list(r.notes),
                r.technique,
            )
        )
    tensors = load_file(folder / TENSORS)
    with torch.no_grad():
        for name, t in _named(current.model):
            if t.shape != tensors[name].shape:
                raise ValueError(
                    f"{name}: kept {tuple(tensors[name].shape)}, built {tuple(t.shape)}"
                )
            t.data = tensors[name]
    return current, changes


def _named(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers, tied ones once, non-persistent buffers included."""
    return [*model.named_parameters(), *model.named_buffers()]
