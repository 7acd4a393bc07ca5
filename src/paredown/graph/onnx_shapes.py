"""Shapes and types of an ONNX model's values, by inference on a copy without large weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from paredown.graph.onnx_operators import attribute

SMALL = 1024
"""Constants up to this many elements take part in shape inference with their values."""


def inferred_shapes(
    model: Any, inputs: Mapping[str, Sequence[int]]
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and dtype of every value whose shape can be inferred, by name.

    Inference runs on a copy without large weights, with the inputs' shapes filled in.
    """
    import onnx
    from onnx import helper

    graph = model.graph
    large = [i for i in graph.initializer if prod(i.dims) > SMALL or not _has_values(i)]
    names = {i.name for i in graph.initializer}
    given = [
        helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, list(inputs[v.name]))
        for v in graph.input
        if v.name not in names
    ]
    given += [helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in large]
    outputs = [onnx.ValueInfoProto(name=o.name) for o in graph.output]
    small = [i for i in graph.initializer if prod(i.dims) <= SMALL and _has_values(i)]
    nodes, made = _standing_in(graph)
    bare = helper.make_model(
        helper.make_graph(nodes, "shapes", given + made, outputs, small),
        opset_imports=[o for o in model.opset_import if o.domain != "paredown"],
    )
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for v in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = v.type.tensor_type
        dims = list(tensor.shape.dim)
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found[v.name] = (tuple(d.dim_value for d in dims), tensor.elem_type)
    return found


def _has_values(tensor: Any) -> bool:
    """Whether a tensor carries its values, not its shape and type alone."""
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return prod(tensor.dims) == 0 or any(len(getattr(tensor, f)) for f in fields)


def _standing_in(graph: Any) -> tuple[list[Any], list[Any]]:
    """The nodes with `paredown` operators replaced by standard ones of equal shapes and types.

    Weights in groups, which no standard operator unpacks, become inputs: the second list.
    """
    from onnx import TensorProto, helper

    dims = {i.name: list(i.dims) for i in graph.initializer}
    nodes: list[Any] = []
    made: list[Any] = []
    for node in graph.node:
        if node.domain != "paredown":
            nodes.append(node)
        elif node.op_type == "DequantizeGroups":
            shape = [dims[node.input[1]][0], attribute(node, "columns", 0)]
            info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)
            made.append(info)
        elif node.op_type == "DynamicQuantize":
            nodes.append(helper.make_node("DynamicQuantizeLinear", node.input[:1], node.output))
        else:
            signed = attribute(node, "qmin", 0) < 0
            integer = TensorProto.INT8 if signed else TensorProto.UINT8
            to = integer if node.op_type == "Quantize" else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", node.input[:1], node.output, to=to))
    return nodes, made
