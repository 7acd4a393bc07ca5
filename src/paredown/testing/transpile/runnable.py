"""Compiled programs as kernels of the bench: tensors in, tensors out, workspaces kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paredown.errors import InputError
from paredown.kernels.loops.compiled import Library
from paredown.kernels.loops.compute import Operator
from paredown.kernels.loops.stmt import Program
from paredown.testing.bench.backends import Kernel
from paredown.testing.transpile.operators import Written

Buffers = list[tuple[str, tuple[int, ...]]]
"""A program's buffers in order: names and shapes; inputs, outputs, then workspaces."""
RUN = "run"
"""The function that a text in C++ must have."""


def buffers(program: Program, op: Operator) -> Buffers:
    """A program's buffers, by the tensors of the operator that was scheduled."""
    tensors = op.tensors()
    return [(p.name, tensors[p.name].shape) for p in program.parameters]


def compiled_kernel(text: str, made_of: Buffers, written: Written, threads: int) -> Kernel:
    """Compile a text and give what the bench calls; raises ``LoweringError``."""
    library = Library([text])
    function = library.function(RUN, len(made_of))
    given = len(written.op.inputs)
    inputs = [t.shape for t in written.op.inputs[: given - len(written.weights)]]
    weights = [torch.from_numpy(w) for w in written.weights]
    results = [shape for _, shape in made_of[given : given + len(written.op.outputs)]]
    works = [torch.empty(shape) for _, shape in made_of[given + len(results) :]]

    def call(*tensors: Tensor) -> Any:
        checked(tensors, inputs)
        library.threads(threads)
        dense = [t.contiguous() for t in tensors]
        out = [torch.empty(shape) for shape in results]
        function(*[t.data_ptr() for part in (dense, weights, out, works) for t in part])
        return out[0] if len(out) == 1 else tuple(out)

    return call


def checked(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse what a kernel was not made for: raises ``InputError``."""
    got = [tuple(t.shape) for t in tensors]
    if got != list(shapes) or any(t.dtype != torch.float32 for t in tensors):
        raise InputError(f"this kernel is for float32 {list(shapes)}, not {got}: build another")
