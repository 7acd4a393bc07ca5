"""What a pair is made of: an operator of the loop language with the bench's task that judges it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.errors import UnknownName
from paredown.kernels.loops.emulator import emulate
from paredown.kernels.loops.stmt import Program
from paredown.testing.bench.backends import Kernel, KernelBackend
from paredown.testing.bench.task import Task, tasks
from paredown.testing.transpile.graphs import Graph
from paredown.testing.transpile.operators import MAKERS, Written, operator
from paredown.testing.transpile.runnable import Buffers, checked, compiled_kernel


@dataclass(frozen=True)
class Subject:
    """A task and the same as loops. ``source`` is plain data that finds it again."""

    source: dict[str, Any]
    task: Task
    written: Written

    def backend(self, name: str, text: str, buffers: Buffers, threads: int) -> KernelBackend:
        """C++ text as a backend of the bench, made of compiling it."""

        def make(_task: Task, _threads: int) -> Kernel:
            return compiled_kernel(text, buffers, self.written, threads)

        return KernelBackend(name, make)

    def emulated(self, program: Program, buffers: Buffers) -> KernelBackend:
        """A program of blocks and threads as a backend: run by the emulator."""

        def make(_task: Task, _threads: int) -> Kernel:
            return _emulated(program, buffers, self.written)

        return KernelBackend("emulated", make)


def subject(source: str | dict[str, Any] | Graph) -> Subject:
    """By the name of a task of the bench, by a graph, or by what ``Subject.source`` was."""
    if isinstance(source, str):
        source = {"task": source}
    if isinstance(source, Graph):
        return Subject({"graph": source.to_json()}, source.task(), source.written())
    if "graph" in source:
        return subject(Graph.from_json(source["graph"]))
    named = {t.name: t for t in tasks()}
    name = source.get("task")
    if name not in named or name not in MAKERS:
        raise UnknownName("task written as loops", str(name), list(MAKERS))
    return Subject({"task": name}, named[name], operator(named[name]))


def _emulated(program: Program, buffers: Buffers, written: Written) -> Kernel:
    import torch

    count = len(written.op.inputs) - len(written.weights)
    results = buffers[len(written.op.inputs) :][: len(written.op.outputs)]

    def call(*tensors: torch.Tensor) -> Any:
        checked(tensors, [t.shape for t in written.op.inputs[:count]])
        arrays = [t.numpy() for t in tensors] + written.weights
        known = {
            name: np.array(a, np.float32, order="C").reshape(-1)
            for (name, _), a in zip(buffers, arrays, strict=False)
        }
        for name, shape in buffers[len(arrays) :]:
            known[name] = np.full(int(np.prod(shape)), np.nan, np.float32)
        emulate(program, known)
        out = [torch.from_numpy(known[n].reshape(shape)) for n, shape in results]
        return out[0] if len(out) == 1 else tuple(out)

    return call
