"""ONNX Runtime on the CPU: exported by `torch.onnx`, quantized forms as its integer operators."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from paredown.errors import ArtefactError, CaptureError, LoweringError, MissingExtra
from paredown.graph.graph import Graph
from paredown.runtime._quiet import quiet
from paredown.runtime.backend import COMPUTE, Asked, Backend, Executable, Ran
from paredown.runtime.call import Call
from paredown.runtime.export import Exported, export, first_line
from paredown.runtime.onnx_file import external
from paredown.runtime.onnx_model import OnnxModule, described
from paredown.runtime.onnx_render import lowered
from paredown.workload import Workload

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
EXTERNAL_BYTES = 1_500_000_000
"""Weights above this go beside the file: one protobuf cannot hold 2 GB."""


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
        files = [Path("model.onnx"), Path("call.json")]
        if isinstance(self.source, bytes):
            (folder / "model.onnx").write_bytes(self.source)
        else:
            files += _copy(Path(self.source), folder)
        meta = {
            "call": self.call.to_json(),
            "asked": {site: a.to_json() for site, a in self.asked.items()},
            "sites": self.sites,
            "fold": self.fold,
        }
        (folder / "call.json").write_text(json.dumps(meta), encoding="utf-8")
        return files

    def weight_bytes(self) -> int:
        """Bytes of the constants of the optimized graph."""
        return self._graph()[1]

    def _graph(self) -> tuple[list[dict[str, Any]], int]:
        if self._optimized is None:
            self._optimized = _optimized(self.source, self.threads, self.fold)
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
        if isinstance(workload.model, OnnxModule):
            asked = workload.model.precision
            half = f"onnxruntime's CPU kernels do not compute in {asked}"
            return [] if asked == "float32" else [half]
        tensors = [*workload.model.named_parameters(), *workload.model.named_buffers()]
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
            meta = json.loads((folder / "call.json").read_text(encoding="utf-8"))
            asked = {site: Asked(**a) for site, a in meta["asked"].items()}
            sites, call = dict(meta["sites"]), Call.from_json(meta["call"])
            fold = bool(meta.get("fold", False))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ArtefactError(f"{folder} holds no readable onnx model: {first_line(e)}") from e
        return OnnxExecutable(folder / "model.onnx", call, asked, sites, threads, fold=fold)


def convert(exported: Exported) -> tuple[Any, dict[str, str]]:
    """ONNX bytes (a file's path when large) of an export, and the module path of each node name."""
    from paredown.runtime import onnx_lowering as table

    _settle_layouts(exported.program)
    try:
        with quiet():
            program = torch.onnx.export(
                exported.program,
                dynamo=True,
                verbose=False,
                custom_translation_table=table.translations(),
            )
    except Exception as e:
        raise LoweringError(f"onnxruntime cannot convert the model: {_cause(e)}") from e
    model: Any = program.model  # type: ignore[union-attr]
    table.lower(model)
    sites = _name_nodes(model)
    return serialised(model), sites


def _settle_layouts(program: torch.export.ExportedProgram) -> None:
    """Make attention's results contiguous: decomposed, they are laid out otherwise.

    The exporter traces views of them before it decomposes them, and then fails to replay the views.
    ONNX has no strides, so the copy is no operator there.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if str(node.target) == "aten.scaled_dot_product_attention.default":
            with graph.inserting_after(node):
                copy = graph.call_function(
                    torch.ops.aten.clone.default,
                    (node,),
                    {"memory_format": torch.contiguous_format},
                )
            copy.meta = {**node.meta, "val": node.meta["val"].contiguous()}
            node.replace_all_uses_with(
                copy, delete_user_cb=lambda user, copy=copy: user is not copy
            )
    program.graph_module.recompile()


def session(
    source: Any,
    threads: int,
    optimized: Path | None = None,
    *,
    plain: bool = False,
    fold: bool = False,
) -> Any:
    """A CPU session with fixed threads. Raises ``LoweringError`` with ONNX Runtime's own words.

    ``plain`` runs every operator as it stands, nothing fused. ``fold`` dequantizes weights once, as
    the session is opened, which ONNX Runtime otherwise does on every run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if fold:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        data = source if isinstance(source, bytes) else str(source)
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise LoweringError(f"onnxruntime cannot open the model: {_opening(e)}") from e


_HALF = (torch.bfloat16, torch.float16)


def _require() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "onnx", "the onnxruntime backend") from None


def _name_nodes(model: Any) -> dict[str, str]:
    """Map node names to module paths; drop the exporter's notes (they quote the user's source)."""
    import ast

    sites: dict[str, str] = {}
    for i, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        paths = [s for s in scopes[:-1] if s == "model" or s.startswith("model.")]
        node.name = node.name or f"node_{i}"
        path = paths[-1].removeprefix("model").removeprefix(".") if paths else ""
        sites |= dict.fromkeys([node.name, *(v.name for v in node.outputs if v.name)], path)
        node.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    return sites


def serialised(model: Any) -> Any:
    """An ``onnx_ir`` model as bytes, or the path of a file in a temporary folder when large."""
    import onnx_ir as ir

    total = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    if total < EXTERNAL_BYTES:
        return ir.to_proto(model).SerializeToString()
    folder = Path(tempfile.mkdtemp(prefix="paredown-onnx-"))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


def _copy(source: Path, folder: Path) -> list[Path]:
    import shutil

    import onnx

    beside = external(onnx.load(str(source), load_external_data=False), source)
    shutil.copyfile(source, folder / "model.onnx")
    for name in beside:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, folder / name)
    return [Path(name) for name in beside]


def _opening(e: BaseException) -> str:
    """Why a session did not open, without the places in ONNX Runtime's own sources."""
    line = re.sub(r"/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])", " ", first_line(e))
    return line.rpartition("failed:")[2].strip()


def _optimized(source: Any, threads: int, fold: bool) -> tuple[list[dict[str, Any]], int]:
    """The graph after ONNX Runtime's own optimizations.

    Name, op and type of a constant weight of each node, and the bytes of all constants.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="paredown-onnx-") as folder:
        path = Path(folder) / "optimized.onnx"
        session(source, threads, path, fold=fold)
        model = onnx.load(str(path), load_external_data=False)
    size = sum(_tensor_bytes(i) for i in model.graph.initializer)
    types = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer}
    rows: list[dict[str, Any]] = []
    for node in model.graph.node:
        held = _HELD.get(next((types[i] for i in _weight_inputs(node) if i in types), ""))
        if node.op_type == "MatMulNBits":
            bits = next(a.i for a in node.attribute if a.name == "bits")
            held = f"int{bits}"
        rows.append({"name": node.name, "op": node.op_type, "held": held})
    return rows, size


def _tensor_bytes(tensor: Any) -> int:
    from onnx import helper

    width = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims)) * width


_HELD = {"INT8": "int8", "UINT8": "int8", "INT4": "int4", "UINT4": "int4", "FLOAT": "float32"}


def _weight_inputs(node: Any) -> list[str]:
    """Where a product's weight stands among its inputs."""
    if node.op_type == "Gather":
        return list(node.input[:1])
    at = 3 if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else 1
    return list(node.input[at : at + 1])


def _cause(e: BaseException) -> str:
    """The innermost reason of an exporter's chain of errors."""
    while e.__cause__ is not None:
        e = e.__cause__
    return first_line(e)
