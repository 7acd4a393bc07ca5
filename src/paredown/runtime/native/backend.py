"""The ``native`` backend: our own engine (`kernels/cpp/engine`), torch for what it lacks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from paredown import kernels
from paredown.errors import CaptureError, LoweringError
from paredown.graph.graph import Graph
from paredown.graph.varying import cannot_compile
from paredown.runtime.backend import COMPUTE, Asked, Backend, Executable, Ran
from paredown.runtime.call import Call
from paredown.runtime.native.plan import Plan
from paredown.runtime.onnx_model import needs_torch
from paredown.workload import Workload


class NativeExecutable(Executable):
    """A plan behind the original call. Results are fresh tensors, inputs may have any strides."""

    backend = "native"

    def __init__(
        self,
        plan: Plan,
        weights: dict[str, torch.Tensor],
        call: Call,
        asked: dict[str, Asked],
        threads: int,
        *,
        folder: Path | None = None,
    ) -> None:
        from paredown.runtime.native.execute import Runner

        self.plan, self.call, self.asked, self.threads = plan, call, asked, threads
        start = time.perf_counter()
        self.runner = Runner(plan, weights, threads)
        self.compile_s = time.perf_counter() - start
        # Kept for `save`: a loaded plan is copied from its folder instead.
        self._weights = weights if folder is None else None
        self._folder = folder
        self._shares: list[float] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; other shapes raise ``InputError`` naming those of the plan."""
        leaves = [t.detach().contiguous() for t in self.call.tensors(args, kwargs)]
        return self.call.result(self.runner(leaves))

    def executed(self) -> list[Ran]:
        """Each step; those that torch ran with the reason and their share of the time."""
        rows: list[Ran] = []
        for i, step in enumerate(self.plan.steps):
            for part in step.parts:
                name = f"{part['op']}_{self.isa}"
                rows.append(Ran(part["site"], name, part["precision"], None, COMPUTE))
                rows.append(Ran(part["site"], "weight", part["weight"]))
            why = None
            if step.fallback is not None:
                why = f"torch ran it, {self.shares()[i]:.0%} of the time: {step.fallback}"
            # The level whose kernels ran is part of the operator's name, as in other runtimes.
            native = step.fallback is None
            name = self.runner.kernel(step) if native else step.fields["target"]
            rows.append(Ran(step.site, name, step.precision, why, step.role))
            if step.weight is not None:
                rows.append(Ran(step.site, "weight", step.weight))
        return rows

    def shares(self) -> list[float]:
        """The share of the time of each step, timed once on zeros."""
        if self._shares is None:
            leaves = [torch.zeros(i.shape, dtype=getattr(torch, i.dtype)) for i in self.call.inputs]
            spent = self.runner.seconds(leaves)
            total = sum(spent) or 1.0
            self._shares = [s / total for s in spent]
        return self._shares

    @property
    def isa(self) -> str:
        """The instruction-set level whose kernels run."""
        return self.runner.isa

    def save(self, folder: Path) -> list[Path]:
        """Write ``plan.json`` and ``weights.safetensors``; weights as they are, not packed."""
        from paredown.runtime.native import store

        weights = self._weights if self._folder is None else store.load(self._folder)[1]
        assert weights is not None
        return store.save(folder, self.plan, weights, self.call, self.asked)

    def weight_bytes(self) -> int:
        """Bytes of packed weights and constants."""
        return self.runner.weight_bytes

    def arena_bytes(self) -> int:
        """Bytes of the arena with the kernels' scratch areas; results are torch's."""
        return self.runner.arena_bytes


class Native(Backend):
    """The ``native`` backend."""

    name: ClassVar[str] = "native"
    ours: ClassVar[bool] = True

    def available(self) -> str | None:
        """None when the native module was built, else how to get it."""
        why = kernels.why_missing()
        if why is not None:
            return why
        if not hasattr(kernels.native(), "Engine"):
            return "the native module is older than this paredown: install it again"
        return None

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Only forward runs of torch modules; operators it lacks run through torch."""
        if workload.run != "forward":
            return [f"native runs `forward`, not {workload.run!r}"]
        why = needs_torch(workload) or cannot_compile(workload.model, "native")
        return [why] if why else []

    def lower(self, workload: Workload, *, threads: int) -> NativeExecutable:
        """Export, build the plan, pack the weights."""
        from paredown.runtime.export import export

        if why := self.available():
            raise LoweringError(why)
        if reasons := self.supports(workload, None):
            raise LoweringError(reasons[0])
        try:
            exported = export(workload)
        except CaptureError as e:
            raise LoweringError(f"native: {e}") from e
        return lower_exported(exported, workload.name, threads)

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> NativeExecutable:
        """Read a plan back and pack its weights for this machine; the workload is not needed."""
        from paredown.runtime.native import store

        plan, weights, call, asked = store.load(folder)
        return NativeExecutable(plan, weights, call, asked, threads, folder=folder)


def lower_exported(exported: Any, name: str, threads: int) -> NativeExecutable:
    """An executable from an export; its ``compile_s`` is that of plan and packing."""
    from paredown.runtime.native.lower import lower

    start = time.perf_counter()
    with torch.no_grad():
        plan, weights = lower(exported, name)
    out = NativeExecutable(plan, weights, exported.call, exported.asked, threads)
    out.compile_s = time.perf_counter() - start
    return out
