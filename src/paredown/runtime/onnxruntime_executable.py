"""An ONNX Runtime session behind the original call, and what of it ran in which numbers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paredown.runtime import call_file
from paredown.runtime.backend import COMPUTE, Asked, Executable, Ran
from paredown.runtime.call import Call
from paredown.runtime.onnx_write import copy_model
from paredown.runtime.onnxruntime_session import optimized_graph, session

INT8_PRODUCTS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    }
)
FLOAT_PRODUCTS = frozenset(
    {
        "Conv",
        "FusedConv",
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "ConvTranspose",
        "LSTM",
        "GRU",
        "Attention",
        "MultiHeadAttention",
    }
)


class OnnxExecutable(Executable):
    """An ONNX Runtime session behind the original call."""

    backend = "onnxruntime"

    def __init__(
        self,
        source: Any,
        call: Call,
        asked: dict[str, Asked],
        sites: dict[str, str],
        threads: int,
        *,
        fold: bool = False,
    ) -> None:
        self.source, self.call, self.asked, self.sites = source, call, asked, sites
        self.threads, self.fold = threads, fold
        start = time.perf_counter()
        self.session = session(source, threads, fold=fold)
        self.compile_s = time.perf_counter() - start
        self._inputs = [i.name for i in self.session.get_inputs()]
        self._outputs = [o.name for o in self.session.get_outputs()]
        self._optimized: tuple[list[dict[str, Any]], int] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once; inputs and outputs share memory with numpy."""
        leaves = self.call.tensors(args, kwargs)
        feeds = {
            n: leaf.detach().contiguous().numpy()
            for n, leaf in zip(self._inputs, leaves, strict=True)
        }
        out = self.session.run(self._outputs, feeds)
        return self.call.result([torch.from_numpy(np.asarray(o)) for o in out])

    def executed(self) -> list[Ran]:
        """Operators of the graph as ONNX Runtime optimized it, weights by the type held."""
        rows: list[Ran] = []
        for node in self._graph()[0]:
            op, site = node["op"], self._site(node["name"])
            if op in INT8_PRODUCTS:
                rows.append(Ran(site, op, "int8", role=COMPUTE))
            elif op in FLOAT_PRODUCTS or op == "MatMulNBits":
                rows.append(Ran(site, op, "float32", self._otherwise(site, op), COMPUTE))
            else:
                rows.append(Ran(site, op, "float32"))
                if op != "Gather" or node["held"] not in ("int8", "int4"):
                    continue
            if node["held"]:
                rows.append(Ran(site, "weight", node["held"]))
        return rows

    def save(self, folder: Path) -> list[Path]:
        """Write ``model.onnx`` (weights beside it when large) and ``call.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        called = call_file.save(folder, self.call, self.asked, sites=self.sites, fold=self.fold)
        files = [Path("model.onnx"), called]
        if isinstance(self.source, bytes):
            (folder / "model.onnx").write_bytes(self.source)
        else:
            files += copy_model(Path(self.source), folder)
        return files

    def weight_bytes(self) -> int:
        """Bytes of the constants of the optimized graph."""
        return self._graph()[1]

    def _graph(self) -> tuple[list[dict[str, Any]], int]:
        if self._optimized is None:
            self._optimized = optimized_graph(self.source, self.threads, self.fold)
        return self._optimized

    def _site(self, name: str) -> str:
        """The module of an optimized node: fusion keeps its name, or its output's, as a stem."""
        while name:
            if name in self.sites:
                return self.sites[name]
            name = name[: max(name.rfind("/"), name.rfind("_"), 0)]
        return ""

    def _otherwise(self, site: str, op: str) -> str | None:
        asked = self.asked.get(site)
        if asked is None or (op == "MatMulNBits" and asked.compute == "float32"):
            return None
        if asked.compute == "int8" and op in ("Conv", "FusedConv"):
            return "its output is not quantized again: ONNX Runtime has no such int8 convolution"
        if asked.compute != "float32":
            return f"asked for {asked.compute}, ONNX Runtime kept a float product here"
        if asked.weight and self.fold:
            return "its weight is dequantized as the model is loaded: fewer bytes on disk alone"
        if asked.weight:
            return "no operator takes weights so grouped: they are dequantized on every run"
        return None
