"""An executable as a module with the original's signature, for any batch: split, padded, joined."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from paredown.errors import InputError
from paredown.runtime import tree
from paredown.runtime.backend import Executable
from paredown.runtime.call import describe
from paredown.workload import Workload


class Facade(nn.Module):
    """Call it like the model: one forward, also where a run is a loop.

    A batch other than the compiled one is cut into compiled batches.
    Batched inputs are the tensors whose first dimension equals the example batch; the last piece is
    padded by repeating its last sample, and its surplus results are dropped. Outputs whose first
    dimension is the compiled batch are concatenated; others must agree between pieces.
    """

    def __init__(self, executable: Executable, workload: Workload) -> None:
        super().__init__()
        self.executable = executable
        # Not a submodule: its tensors are the executable's, or nobody's.
        self.__dict__["stands_for"] = workload.model
        self._call, example = describe(workload.model, workload.inputs, workload.kwargs)
        sizes = [t.shape[0] for t in example if t.ndim]
        self.batch = sizes[0] if sizes else 1
        self._batched = [t.ndim > 0 and t.shape[0] == self.batch for t in example]
        self._any_shape = executable.backend == "eager" or workload.loop is not None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for any batch. Raises ``InputError`` where other dimensions differ."""
        if self._any_shape:
            return self.executable.step(*args, **kwargs)
        leaves: list[torch.Tensor] = []
        spec = tree.flatten((list(args), kwargs), leaves, classes := {})
        count = self._count(leaves)
        if count is None or count == self.batch:
            return self.executable(*args, **kwargs)
        pieces: list[Any] = []
        for start in range(0, count, self.batch):
            part = [
                _piece(t, start, self.batch) if on else t
                for t, on in zip(leaves, self._on(leaves, count), strict=True)
            ]
            a, k = tree.rebuild(spec, part, classes)
            pieces.append(self.executable(*a, **k))
        return _together(pieces, count, self.batch)

    def _on(self, leaves: list[torch.Tensor], count: int) -> list[bool]:
        if len(leaves) == len(self._batched):
            return [
                on and t.ndim > 0 and t.shape[0] == count
                for t, on in zip(leaves, self._batched, strict=True)
            ]
        return [t.ndim > 0 and t.shape[0] == count for t in leaves]

    def _count(self, leaves: list[torch.Tensor]) -> int | None:
        if len(leaves) != len(self._batched):
            return None
        sizes = {t.shape[0] for t, on in zip(leaves, self._batched, strict=True) if on and t.ndim}
        # One that stayed at the compiled size beside others that did not is shared by all pieces.
        sizes -= {self.batch} if len(sizes) > 1 else set()
        if len(sizes) > 1:
            raise InputError(f"the batched inputs disagree on the batch: {sorted(sizes)}")
        count = sizes.pop() if sizes else None
        if count == 0:
            raise InputError("the batch is empty")
        return count


def _piece(t: torch.Tensor, start: int, batch: int) -> torch.Tensor:
    part = t[start : start + batch]
    lack = batch - part.shape[0]
    return torch.cat([part, part[-1:].expand(lack, *part.shape[1:])]) if lack else part


def _together(pieces: list[Any], count: int, batch: int) -> Any:
    classes: tree.Classes = {}
    flat: list[list[torch.Tensor]] = []
    spec: tree.Spec = {}
    for piece in pieces:
        leaves: list[torch.Tensor] = []
        spec = tree.flatten(piece, leaves, classes)
        flat.append(leaves)
    out: list[torch.Tensor] = []
    for parts in zip(*flat, strict=True):
        if parts[0].ndim and parts[0].shape[0] == batch:
            out.append(torch.cat(parts)[:count])
        elif all(torch.equal(parts[0], p) for p in parts[1:]):
            out.append(parts[0])
        else:
            raise InputError(
                f"an output of shape {list(parts[0].shape)} mixes the batch: "
                f"call with batch {batch}"
            )
    return tree.rebuild(spec, out, classes)
