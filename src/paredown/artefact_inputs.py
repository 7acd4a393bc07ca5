"""An artefact's example inputs: their tensors in one file, how they nest in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paredown.errors import ArtefactError, InputError
from paredown.manifest import Manifest
from paredown.workload import Workload

INPUTS = "inputs.safetensors"


def save_inputs(path: Path, workload: Workload) -> dict[str, Any] | None:
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


def load_inputs(folder: Path, manifest: Manifest) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `save_inputs` wrote, as arguments. Raises ``ArtefactError`` where it is damaged."""
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
