"""torch.compile with inductor, weights frozen; saved as tensors and compiled again on load.

A loop (`generate` ...) calls the compiled module from the same Python loop as eager. Its first call
and its later ones are compiled apart; a length that grows from step to step (a cache) is compiled
once, as a symbol.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from paredown.errors import InputError, LoweringError
from paredown.graph.graph import Graph
from paredown.graph.varying import cannot_compile
from paredown.runtime._quiet import quiet
from paredown.runtime.backend import COMPUTE, Backend, Ran
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
from paredown.runtime.packed import Packed
from paredown.workload import Workload

FOLDED = "inductor holds its weight in floats, dequantized once"

_clears = 0
"""How often the cache of compiled code was cleared in this process."""


def _cleared() -> None:
    global _clears
    _clears += 1


class InductorExecutable(EagerExecutable):
    """A compiled module; takes only the shapes it was compiled for."""

    backend = "inductor"

    def __init__(self, workload: Workload, threads: int) -> None:
        super().__init__(workload, threads)
        self.call, _ = describe(workload.model, workload.inputs, workload.kwargs)
        start = time.perf_counter()
        self._compiled, self.breaks = _compile(workload)
        self._compiled_at = _clears
        self.compile_s = time.perf_counter() - start

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; other shapes would recompile, so they raise ``InputError`` naming both."""
        self.call.tensors(args, kwargs)
        with self._ready():
            if self.workload.loop is None:
                return self._compiled(*args, **kwargs)
            return self._looped(self._compiled, args, kwargs)

    def _ready(self) -> Any:
        """What a call runs in; one that compiles (a new shape in a loop, a cache cleared by the
        next lowering) freezes as the first did.
        """
        if self.workload.loop is None and self._compiled_at == _clears:
            return torch.inference_mode()
        self._compiled_at = _clears
        return _compiling()

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the compiled module; a shape that is new to a loop compiles once more."""
        if self.workload.loop is None:
            return self(*args, **kwargs)
        with _compiling():
            return self._compiled(*args, **kwargs)

    def executed(self) -> list[Ran]:
        """Precisions are those of the eager program: inductor keeps every dtype as written.

        But freezing computes once what follows from weights alone: a weight that is dequantized
        outside a packed operator is held in floats.
        """
        folded = self._folded()
        return [_as_frozen(r, folded.get(r.site), self.breaks) for r in self.observed.ran]

    def weight_bytes(self) -> int:
        """As eager, and the float weights that freezing makes of those dequantized."""
        made = 0
        for site, dtype in self._folded().items():
            form: Any = self.model.get_submodule(site)
            if (weight := getattr(form, "weight", None)) is not None:
                values = weight.numel() * (2 if getattr(form, "bits", 8) == 4 else 1)
                made += values * getattr(torch, dtype).itemsize
        return super().weight_bytes() + made

    def _folded(self) -> dict[str, str]:
        """Sites of quantized weights that no packed operator reads, and the dtype they get."""
        return {
            site: asked.dtype
            for site, asked in self.observed.asked.items()
            if asked.weight and not isinstance(self.model.get_submodule(site), Packed)
        }


def _as_frozen(ran: Ran, folded: str | None, breaks: str | None) -> Ran:
    if folded is None:
        return replace(ran, fallback=ran.fallback or breaks)
    if ran.op == "weight":
        return replace(ran, precision=folded)
    if ran.role == COMPUTE:
        return replace(ran, fallback=f"{FOLDED}; {ran.fallback}" if ran.fallback else FOLDED)
    return ran


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
        why = needs_torch(workload) or cannot_loop(workload)
        why = why or cannot_compile(workload.model, "inductor")
        return [why] if why else []

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
    from paredown.runtime import _inductor_lowering

    _inductor_lowering.register()
    # Several candidates live in one process: a fresh cache keeps the recompile limit away.
    torch.compiler.reset()
    _cleared()
    dynamic = False if workload.loop is None else None  # None: a size that changes is a symbol
    compiled = torch.compile(workload.model, fullgraph=whole, dynamic=dynamic)
    with _compiling():
        workload.once(call=compiled)
    return compiled


@contextmanager
def _compiling() -> Generator[None]:
    """What may compile must freeze: inductor takes a packed weight as a constant alone."""
    import torch._inductor.config as config

    with quiet(), config.patch(freezing=True), torch.inference_mode():
        yield
