"""torch.compile with inductor, weights frozen; saved as tensors and compiled again on load.

A loop (`generate` ...) calls the compiled module from the same Python loop as eager. Its first call
and its later ones are compiled apart; a length that grows from step to step (a cache) is compiled
once, as a symbol.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from paredown.errors import InputError, LoweringError
from paredown.graph.graph import Graph
from paredown.runtime._quiet import quiet
from paredown.runtime.backend import Backend, Ran
from paredown.runtime.call import describe
from paredown.runtime.eager import (
    TENSORS,
    EagerExecutable,
    cannot_loop,
    load_tensors,
    set_threads,
)
from paredown.runtime.export import first_line
from paredown.runtime.onnx_model import needs_torch
from paredown.workload import Workload


class InductorExecutable(EagerExecutable):
    """A compiled module; takes only the shapes it was compiled for."""

    backend = "inductor"

    def __init__(self, workload: Workload, threads: int) -> None:
        super().__init__(workload, threads)
        self.call, _ = describe(workload.model, workload.inputs, workload.kwargs)
        start = time.perf_counter()
        self._compiled, self.breaks = _compile(workload)
        self.compile_s = time.perf_counter() - start

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; other shapes would recompile, so they raise ``InputError`` naming both."""
        self.call.tensors(args, kwargs)
        with torch.inference_mode():
            if self.workload.loop is None:
                return self._compiled(*args, **kwargs)
            return self._looped(self._compiled, args, kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the compiled module; a shape that is new to a loop compiles once more."""
        if self.workload.loop is None:
            return self(*args, **kwargs)
        with quiet(), torch.inference_mode():
            return self._compiled(*args, **kwargs)

    def executed(self) -> list[Ran]:
        """Precisions are those of the eager program: inductor keeps every dtype as written."""
        return [
            Ran(r.site, r.op, r.precision, r.fallback or self.breaks, r.role)
            for r in self.observed.ran
        ]


class Inductor(Backend):
    """The ``inductor`` backend."""

    name: ClassVar[str] = "inductor"

    def available(self) -> str | None:
        """None when a C++ compiler is there to build the generated kernels."""
        if shutil.which("g++") or shutil.which("clang++"):
            return None
        return "inductor builds C++ and found no compiler: apt-get install g++"

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Forward runs, and loops around the compiled module."""
        if workload.run == "train_step":
            return ["inductor runs no training step: it freezes the weights"]
        return [why] if (why := needs_torch(workload) or cannot_loop(workload)) else []

    def lower(self, workload: Workload, *, threads: int) -> InductorExecutable:
        """Compile for the example inputs and run once (compilation happens on the first run)."""
        if why := self.available():
            raise LoweringError(why)
        set_threads(threads)
        own = workload.copy()
        own.model.eval()
        return InductorExecutable(own, threads)

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> InductorExecutable:
        """Put the saved tensors into ``workload`` and compile again."""
        if workload is None:
            raise InputError(f"{folder} is compiled from source: name the source it was made from")
        own = workload.copy()
        load_tensors(own.model, folder / TENSORS)
        return self.lower(own, threads=threads)


def _compile(workload: Workload) -> tuple[Any, str | None]:
    """The compiled callable and, where the model could not be compiled whole, why.

    One whole graph when possible; a model that branches on data is compiled in parts.
    """
    from torch._dynamo.exc import Unsupported

    try:
        return _attempt(workload, whole=True), None
    except Unsupported as e:
        why = f"compiled in parts: {first_line(e)}"
    except Exception as e:
        raise LoweringError(f"inductor cannot compile {workload.name}: {first_line(e)}") from e
    try:
        return _attempt(workload, whole=False), why
    except Exception as e:
        raise LoweringError(f"inductor cannot compile {workload.name}: {first_line(e)}") from e


def _attempt(workload: Workload, *, whole: bool) -> Any:
    import torch._inductor.config as config

    from paredown.runtime import _inductor_lowering

    _inductor_lowering.register()
    # Several candidates live in one process: a fresh cache keeps the recompile limit away.
    torch.compiler.reset()
    dynamic = False if workload.loop is None else None  # None: a size that changes is a symbol
    compiled = torch.compile(workload.model, fullgraph=whole, dynamic=dynamic)
    with quiet(), config.patch(freezing=True), torch.inference_mode():
        workload.once(call=compiled)
    return compiled
