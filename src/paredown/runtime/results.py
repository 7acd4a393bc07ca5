"""The hook ``results``: a memory of results in front of a classifier (Kinnas et al. 2024,
arXiv:2412.01039).

The key of an image is its difference hash: grey, 9 wide and 8 high, one bit for each pair of
neighbours in a row; or, exactly, its own bytes. What a network once answered to a key it is not
asked again. Keys that no one asked for the longest go first where the memory is full.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import run_for, shapes_alone
from paredown.runtime.forms import hook

KEYS = ("hash", "exact")
HASH = (8, 9)
"""Height and width that an image is shrunk to: 8 times 8 pairs of neighbours."""
VARIES = "inputs seen before are answered from memory"


def difference_hash(images: Tensor) -> list[bytes]:
    """64 bits for each image of ``(batch, channels, h, w)``: whether the right one is brighter."""
    grey = images if images.shape[1] == 1 else images.mean(1, keepdim=True)
    small = F.adaptive_avg_pool2d(grey, HASH)[:, 0]
    bits = (small[..., 1:] > small[..., :-1]).flatten(1).numpy()
    return [row.tobytes() for row in np.packbits(bits, axis=1)]


def own_bytes(images: Tensor) -> list[bytes]:
    """The images themselves."""
    rows = images.detach().contiguous().flatten(1).view(torch.uint8).numpy()
    return [row.tobytes() for row in rows]


@dataclass
class Results:
    """What was answered to which key, the latest asked last. Plain data, copied with the model."""

    key: str
    capacity: int
    misses: float
    """Share of inputs that the network is expected to be run for."""
    known: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict[bytes, Tensor])
    asked: int = 0
    hits: int = 0

    def forget(self) -> None:
        """Begin with nothing."""
        self.known.clear()
        self.asked = self.hits = 0

    def keys(self, images: Tensor) -> list[bytes]:
        """One key per image."""
        return difference_hash(images) if self.key == "hash" else own_bytes(images)

    def look(self, key: bytes) -> Tensor | None:
        """What was answered to a key, which is now the latest."""
        self.asked += 1
        found = self.known.get(key)
        if found is not None:
            self.hits += 1
            self.known.move_to_end(key)
        return found

    def note(self, key: bytes, row: Tensor) -> None:
        """Remember an answer."""
        self.known[key] = row
        if len(self.known) > self.capacity:
            self.known.popitem(last=False)


class RememberingModel(nn.Module):
    """Mixed in before a classifier's own class."""

    results: Results
    varies = VARIES

    def forget(self) -> None:
        """Empty the memory."""
        self.results.forget()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to logits, run for the unknown images alone."""
        memory = self.results
        if self.training:
            return super().forward(x)
        if shapes_alone(x):
            with run_for(memory.misses):
                return super().forward(x)
        keys = memory.keys(x)
        rows = [memory.look(key) for key in keys]
        new = [i for i, row in enumerate(rows) if row is None]
        if new:
            logits = super().forward(x if len(new) == len(rows) else x[new])
            for i, row in zip(new, logits.unbind(0), strict=True):
                memory.note(keys[i], row)
                rows[i] = row
            if len(new) == len(rows):
                return logits
        return torch.stack([row for row in rows if row is not None])


@cache
def _remembering(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Remembering{cls.__name__}", (RememberingModel, cls), {})


@hook
def results(module: nn.Module, config: dict[str, Any]) -> None:
    """Put a memory before a classifier: ``key``, ``capacity``, expected ``misses``."""
    if isinstance(module, RememberingModel):
        raise InputError("the network has a memory of results already")
    root: Any = module
    root.results = Results(config["key"], int(config["capacity"]), float(config["misses"]))
    root.__class__ = _remembering(type(root))
