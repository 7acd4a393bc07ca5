"""The layers of a compiled OpenVINO model, from the plugin's own runtime model."""

from __future__ import annotations

from typing import Any

PRECISIONS = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
MATRIX_LAYERS = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "FullyConnected",
        "MatMul",
        "GroupConvolution",
        "RNNSeq",
        "RNNCell",
        "ScaledDotProductAttention",
    }
)
QUIET_LAYERS = frozenset({"Const", "Input", "Output", "Parameter", "Result"})


class Layer:
    """One node of the runtime model: kind, names of what was fused into it, kernel precision."""

    def __init__(self, node: Any) -> None:
        info = runtime_info(node)
        self.node, self.kind = node, info["layerType"]
        full = info["originalLayersNames"].split(",")
        self.names = list(dict.fromkeys([*full, *(n.partition("/")[0] for n in full)]))
        # Small products are compiled into a subgraph with their neighbours.
        self.matrix = self.kind in MATRIX_LAYERS or (
            self.kind == "Subgraph" and any(n.rpartition("/")[2] in MATRIX_LAYERS for n in full)
        )
        # A layer's own precision is that of its weights where those are compressed.
        kernel = precision_name(info["primitiveType"].rpartition("_")[2].lower())
        known = kernel in PRECISIONS.values()
        self.precision = kernel if known else precision_name(info["runtimePrecision"])

    def weight(self) -> str | None:
        """The type a weight is held in: a product's second input, a gather's table."""
        index = 1 if self.kind in MATRIX_LAYERS else 0 if self.kind == "Gather" else None
        if index is None or self.node.get_input_size() <= index:
            return None
        source = self.node.input_value(index).get_node()
        if not is_constant(source):
            return None
        return precision_name(runtime_info(source)["runtimePrecision"])


def is_constant(node: Any) -> bool:
    """Whether a node depends on constants alone, so that it was computed once, when compiling."""
    if node.get_input_size() == 0:
        return runtime_info(node)["layerType"] == "Const"
    return all(is_constant(node.input_value(i).get_node()) for i in range(node.get_input_size()))


def runtime_info(node: Any) -> dict[str, str]:
    """What the plugin tells of a node, ``""`` where it tells nothing."""
    info = node.get_rt_info()
    keys = ("layerType", "originalLayersNames", "primitiveType", "runtimePrecision")
    return {k: info[k].astype(str) if k in info else "" for k in keys}


def precision_name(precision: str) -> str:
    """Our name of a precision."""
    return PRECISIONS.get(precision, precision)
