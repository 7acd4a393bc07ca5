"""ONNX Runtime on the CPU: exported by `torch.onnx`, quantized forms as its integer operators."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.errors import ArtefactError, CaptureError, LoweringError, MissingExtra
from paredown.graph.graph import Graph
from paredown.graph.varying import cannot_compile
from paredown.runtime import call_file
from paredown.runtime.backend import Backend
from paredown.runtime.export import export, first_line
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.onnx_render import lowered
from paredown.runtime.onnx_workload import described
from paredown.runtime.onnx_write import serialised
from paredown.runtime.onnxruntime_convert import convert
from paredown.runtime.onnxruntime_executable import OnnxExecutable
from paredown.runtime.quantized import INTEGER
from paredown.workload import Workload

_HALF = (torch.bfloat16, torch.float16)


class OnnxRuntime(Backend):
    """The ``onnxruntime`` backend."""

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str | None] = "onnx"
    loads_without_paredown: ClassVar[bool] = True

    def available(self) -> str | None:
        """None when onnx, onnxscript and onnxruntime can be imported, else the install line."""
        try:
            _require()
        except MissingExtra as e:
            return str(e)
        return None

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Forward runs in float32 (and quantized forms): its CPU kernels know no bf16 or fp16."""
        if workload.run != "forward":
            return [f"onnxruntime runs `forward`, not {workload.run!r}"]
        if why := cannot_compile(workload.model, "onnxruntime"):
            return [why]
        if isinstance(workload.model, OnnxModule):
            asked = workload.model.precision
            half = f"onnxruntime's CPU kernels do not compute in {asked}"
            return [] if asked == "float32" else [half]
        tensors = list(_computed_with(workload.model))
        low = sorted({str(t.dtype).removeprefix("torch.") for _, t in tensors if t.dtype in _HALF})
        if low:
            first = next(name for name, t in tensors if t.dtype in _HALF)
            return [f"onnxruntime's CPU kernels do not compute in {low[0]} ({first})"]
        return []

    def lower(self, workload: Workload, *, threads: int) -> OnnxExecutable:
        """Export, replace the quantized forms, open a session."""
        _require()
        if reasons := self.supports(workload, None):
            raise LoweringError(reasons[0])
        if isinstance(workload.model, OnnxModule):
            return self._lower_file(workload, threads)
        try:
            exported = export(workload)
        except CaptureError as e:
            raise LoweringError(f"onnxruntime: {e}") from e
        start = time.perf_counter()
        source, sites = convert(exported)
        converting = time.perf_counter() - start
        out = OnnxExecutable(source, exported.call, exported.asked, sites, threads)
        out.compile_s += converting
        return out

    def _lower_file(self, workload: Workload, threads: int) -> OnnxExecutable:
        """An ONNX file as it is while nothing changed it, else put together from its layers."""
        module: Any = workload.model
        call, _, asked = described(workload)
        start = time.perf_counter()
        source: Any = module.path
        if module.changed:
            source = serialised(lowered(module.render()))
        rendering = time.perf_counter() - start
        sites = module.sites()
        # Weights without quantized inputs need no integer operator: dequantize them once.
        fold = any(a.weight for a in asked.values()) and not any(
            a.activation for a in asked.values()
        )
        out = OnnxExecutable(source, call, asked, sites, threads, fold=fold)
        out.compile_s += rendering
        return out

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> OnnxExecutable:
        """Read ``model.onnx`` and ``call.json`` back; the workload is not needed."""
        _require()
        try:
            call, asked, meta = call_file.load(folder)
            sites, fold = dict(meta["sites"]), bool(meta.get("fold", False))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ArtefactError(f"{folder} holds no readable onnx model: {first_line(e)}") from e
        return OnnxExecutable(folder / "model.onnx", call, asked, sites, threads, fold=fold)


def _require() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "onnx", "the onnxruntime backend") from None


def _computed_with(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by name but the scales of packed weights, which are widened on the way."""
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if not (isinstance(module, INTEGER) and name == "scale"):
                yield (f"{path}.{name}" if path else name), tensor
