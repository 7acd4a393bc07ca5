"""Training state in safetensors: student, optimizer, best state and counters, written
atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from paredown.errors import ArtefactError
from paredown.runtime import sparse_file


@dataclass
class Resumed:
    """What a checkpoint held beside the student and the optimizer, which it filled in place."""

    best: dict[str, Tensor]
    extra: dict[str, Any]


class Checkpoint:
    """``recovery.safetensors`` in a folder; does nothing without a folder.

    ``key`` identifies the run (settings, shapes): a checkpoint of another run is not resumed but
    overwritten.
    """

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        self.path = None if folder is None else folder / "recovery.safetensors"
        text = json.dumps(key, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: dict[str, Tensor],
        extra: dict[str, Any],
    ) -> None:
        """Write everything needed to go on from here."""
        if self.path is None:
            return
        tensors = {f"now/{k}": t for k, t in _held(model).items()}
        tensors |= {f"best/{k}": t for k, t in best.items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{i}/{k}": torch.as_tensor(v) for k, v in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        meta = {"key": self.key, "extra": json.dumps(extra)}
        save_file({k: t.detach().clone().contiguous() for k, t in tensors.items()}, temporary, meta)
        os.replace(temporary, self.path)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed | None:
        """Fill model and optimizer from the checkpoint, or None when there is none of this run.

        Raises ``ArtefactError`` for a damaged file.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with sparse_file.opened(self.path) as f:
                meta, tensors = f.metadata, f.tensors()
        except (SafetensorError, OSError) as e:
            raise ArtefactError(f"{self.path} is damaged ({e}): delete it to train anew") from None
        if meta.get("key") != self.key:
            return None
        with torch.no_grad():
            for name, t in _held(model).items():
                t.copy_(tensors[f"now/{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("adam/"):
                _, i, key = name.split("/")
                state.setdefault(int(i), {})[key] = t
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        best = {k.removeprefix("best/"): t for k, t in tensors.items() if k.startswith("best/")}
        return Resumed(best, json.loads(meta["extra"]))


def _held(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
