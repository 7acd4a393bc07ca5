"""Sessions of ONNX Runtime on the CPU, and the graph that one really runs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from paredown.errors import LoweringError
from paredown.runtime.export import first_line

_HELD = {"INT8": "int8", "UINT8": "int8", "INT4": "int4", "UINT4": "int4", "FLOAT": "float32"}


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


def _opening(e: BaseException) -> str:
    """Why a session did not open, without the places in ONNX Runtime's own sources."""
    line = re.sub(r"/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])", " ", first_line(e))
    return line.rpartition("failed:")[2].strip()


def optimized_graph(source: Any, threads: int, fold: bool) -> tuple[list[dict[str, Any]], int]:
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


def _weight_inputs(node: Any) -> list[str]:
    """Where a product's weight stands among its inputs."""
    if node.op_type == "Gather":
        return list(node.input[:1])
    at = 3 if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else 1
    return list(node.input[at : at + 1])


def _tensor_bytes(tensor: Any) -> int:
    from onnx import helper

    width = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims)) * width
