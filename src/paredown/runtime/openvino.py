"""OpenVINO's CPU plugin. Left alone it runs fp32 models in bf16: here it is always told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from paredown.errors import ArtefactError, CaptureError, LoweringError, MissingExtra
from paredown.graph.graph import Graph
from paredown.graph.varying import cannot_compile
from paredown.runtime import call_file
from paredown.runtime.backend import Backend
from paredown.runtime.export import export, first_line
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.onnx_workload import described
from paredown.runtime.openvino_convert import convert, read_file
from paredown.runtime.openvino_executable import OpenVinoExecutable
from paredown.runtime.openvino_plugin import openvino
from paredown.workload import Workload


class OpenVino(Backend):
    """The ``openvino`` backend."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str | None] = "openvino"
    loads_without_paredown: ClassVar[bool] = True

    def available(self) -> str | None:
        """None when openvino can be imported, else the install line."""
        try:
            openvino()
        except MissingExtra as e:
            return str(e)
        return None

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Only forward runs; operators are known after conversion alone."""
        if workload.run != "forward":
            return [f"openvino runs `forward`, not {workload.run!r}"]
        return [why] if (why := cannot_compile(workload.model, "openvino")) else []

    def lower(self, workload: Workload, *, threads: int) -> OpenVinoExecutable:
        """Export, convert with the lowering table, compile."""
        openvino()
        if isinstance(workload.model, OnnxModule):
            return self._lower_file(workload, threads)
        try:
            exported = export(workload)
        except CaptureError as e:
            raise LoweringError(f"openvino: {e}") from e
        start = time.perf_counter()
        model, sites = convert(exported)
        converting = time.perf_counter() - start
        out = OpenVinoExecutable(model, exported.call, exported.asked, sites, threads)
        # Constants share the torch tensors' memory without holding it: it must outlive the model.
        out.keeps = exported.program
        out.compile_s += converting
        return out

    def _lower_file(self, workload: Workload, threads: int) -> OpenVinoExecutable:
        module: Any = workload.model
        call, examples, asked = described(workload)
        start = time.perf_counter()
        model = read_file(module, workload.name, examples)
        reading = time.perf_counter() - start
        out = OpenVinoExecutable(model, call, asked, module.sites(), threads)
        out.compile_s += reading
        return out

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> OpenVinoExecutable:
        """Read ``model.xml`` and ``call.json`` back; the workload is not needed."""
        ov = openvino()
        try:
            call, asked, meta = call_file.load(folder)
            sites = dict(meta["sites"])
            model = ov.Core().read_model(folder / "model.xml")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
            raise ArtefactError(
                f"{folder} holds no readable openvino model: {first_line(e)}"
            ) from e
        return OpenVinoExecutable(model, call, asked, sites, threads)
