"""OpenVINO's lowering table: paredown's quantize and dequantize operators -> its own patterns.

activation quantize -> FakeQuantize to the integer grid; integer weights -> Constant -> Convert ->
Subtract -> Multiply, which the CPU plugin folds into int8 convolutions or compressed products; a
dynamically quantized activation -> the activation itself (the plugin quantizes in the product).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from paredown.errors import LoweringError


def prepare(program: torch.export.ExportedProgram) -> None:
    """Rewrite, in place, what OpenVINO's extensions cannot see: dtypes and dynamic pairs."""
    graph = program.graph_module.graph
    if any(str(n.target).startswith("paredown.dequantize") for n in graph.nodes):
        _widen(program)
    for node in list(graph.nodes):
        target = str(node.target)
        if target.startswith(("paredown.dequantize", "paredown.embedding_groups")):
            _cast_apart(graph, node)
        if target == "paredown.dequantize.default":
            _skip_dynamic(node)
    for node in reversed(list(graph.nodes)):
        if "dynamic_quantize" in str(node.target) or _is_item_of_dynamic(node):
            if node.users:
                raise LoweringError(
                    f"openvino: the result of {node.target} is used other than by a dequantize"
                )
            graph.erase_node(node)
    program.graph_module.recompile()


def _widen(program: torch.export.ExportedProgram) -> None:
    """Write a bf16 program beside integers in float32: the bf16 hint still runs it in bf16.

    The plugin finds int8 products by their float32 dequantize pattern; a cast to bf16 in between
    hides them, and every product then runs in bf16.
    """

    def wide(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(torch.float32) if value.dtype == torch.bfloat16 else value
        return torch.float32 if value is torch.bfloat16 else value

    for node in program.graph_module.graph.nodes:
        node.args = map_aggregate(node.args, wide)
        node.kwargs = map_aggregate(node.kwargs, wide)
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(wide, node.meta["val"])
    for held in (program.state_dict, program.constants):
        for name, value in list(held.items()):
            if isinstance(value, torch.nn.Parameter):
                held[name] = torch.nn.Parameter(wide(value.detach()), requires_grad=False)
            else:
                held[name] = wide(value)


def narrow(model: Any) -> None:
    """Keep as bf16 on disk what `_widen` made float32 of bf16: a constant and a cast."""
    import openvino as ov
    import openvino.opset15 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().to_string() != "f32":
            continue
        bits = np.array(node.data).view(np.uint32)
        if bits.size < 256 or (bits & 0xFFFF).any():
            continue
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(list(bits.shape)))
        tensor.data.view(np.uint16).reshape(-1)[:] = (bits >> 16).astype(np.uint16).reshape(-1)
        cast = ops.convert(ov.op.Constant(tensor), "f32")
        cast.set_friendly_name(node.get_friendly_name())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(cast.output(0))


def extensions() -> list[Any]:
    """Conversion extensions for the operators that are left."""
    from openvino.frontend.pytorch import ConversionExtension

    return [
        ConversionExtension("paredown.quantize.default", _quantize),
        ConversionExtension("paredown.dequantize.default", _dequantize),
        ConversionExtension("paredown.dequantize_groups.default", _dequantize_groups),
        ConversionExtension("paredown.embedding_groups.default", _embedding_groups),
    ]


def onnx_extensions() -> list[Any]:
    """The same conversions for our operators in an ONNX file, where settings are attributes."""
    from openvino.frontend.onnx import ConversionExtension

    def extension(op: str, convert: Callable[[Any], list[Any]], *settings: str) -> Any:
        return ConversionExtension(op, "paredown", lambda c: convert(_OnnxCall(c, settings)))

    return [
        extension("Quantize", _quantize, "qmin", "qmax", "axis"),
        extension("Dequantize", _dequantize, "axis"),
        extension("DequantizeGroups", _dequantize_groups, "bits", "columns"),
    ]


@dataclass(frozen=True)
class _OnnxCall:
    """An ONNX node seen as a call of our operator: its settings stand behind its three inputs."""

    context: Any
    settings: tuple[str, ...]

    def get_input(self, index: int) -> Any:
        return self.context.get_input(index)

    def get_values_from_const_input(self, index: int, _default: Any, _kind: Any) -> Any:
        return self.context.get_attribute(self.settings[index - 3])


def _cast_apart(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Dequantize to float32, then cast: an extension cannot read a dtype argument."""
    *rest, dtype = node.args
    if dtype == torch.float32:
        return
    node.args = (*rest, torch.float32)
    value = node.meta["val"]
    with graph.inserting_after(node):
        cast = graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta = dict(node.meta)
    node.meta["val"] = value.to(torch.float32)
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)


def _skip_dynamic(node: torch.fx.Node) -> None:
    made = node.args[0]
    if isinstance(made, torch.fx.Node) and _is_item_of_dynamic(made):
        source = made.all_input_nodes[0].all_input_nodes[0]
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


def _is_item_of_dynamic(node: torch.fx.Node) -> bool:
    return "getitem" in str(node.target) and any(
        "dynamic_quantize" in str(n.target) for n in node.all_input_nodes
    )


def _data(context: Any, index: int, what: str) -> np.ndarray[Any, Any]:
    node = context.get_input(index).get_node()
    if node.get_type_name() != "Constant":
        raise LoweringError(f"openvino: {what} must be a constant, it is computed by the model")
    return np.array(node.data)


def _along(values: np.ndarray[Any, Any], axis: int, rank: int) -> np.ndarray[Any, Any]:
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if d == axis else 1 for d in range(rank)])


def _rank(output: Any) -> int:
    return output.get_partial_shape().rank.get_length()


def _quantize(context: Any) -> list[Any]:
    import openvino.opset15 as ops

    x = context.get_input(0)
    qmin, qmax, axis = (context.get_values_from_const_input(i, None, int) for i in (3, 4, 5))
    scale = _along(_data(context, 1, "an activation's scale").astype(np.float32), axis, _rank(x))
    zero = _along(
        _data(context, 2, "an activation's zero point").astype(np.float32), axis, _rank(x)
    )
    low, high = ops.constant((qmin - zero) * scale), ops.constant((qmax - zero) * scale)
    if x.get_element_type().to_string() != "f32":
        x = ops.convert(x, "f32").output(0)
    grid = ops.fake_quantize(
        x,
        low,
        high,
        ops.constant(np.float32(qmin)),
        ops.constant(np.float32(qmax)),
        qmax - qmin + 1,
    )
    return [ops.convert(grid, "u8" if qmin >= 0 else "i8").output(0)]


def _dequantize(context: Any) -> list[Any]:
    import openvino.opset15 as ops

    q = context.get_input(0)
    axis = context.get_values_from_const_input(3, None, int)
    scale = _along(_data(context, 1, "a scale").astype(np.float32), axis, _rank(q))
    zero = _along(_data(context, 2, "a zero point"), axis, _rank(q))
    values = ops.convert(q, "f32")
    if zero.any():
        values = ops.subtract(values, ops.constant(zero.astype(np.float32)))
    return [ops.multiply(values, ops.constant(scale)).output(0)]


def _dequantize_groups(context: Any) -> list[Any]:
    return [_table(context, 0).output(0)]


def _embedding_groups(context: Any) -> list[Any]:
    """A gather from a compressed table: only the rows asked for are read and dequantized."""
    import openvino.opset15 as ops

    axis = ops.constant(np.int64(0))
    return [ops.gather(_table(context, 1), context.get_input(0), axis).output(0)]


def _table(context: Any, first: int) -> Any:
    """The float matrix of packed weights, whose inputs start at ``first``."""
    import openvino.opset15 as ops

    q = _data(context, first, "grouped weights")
    scale = _data(context, first + 1, "a scale")
    zero = _data(context, first + 2, "a zero point").astype(np.uint8)
    bits, columns = (
        context.get_values_from_const_input(i, None, int) for i in (first + 3, first + 4)
    )
    rows, groups = scale.shape
    # One group to a row needs no third dimension; the plugin compresses plain rows more often.
    shape = [rows, columns] if groups == 1 else [rows, groups, columns // groups]
    if bits == 4 and columns % 2 == 0:
        values = _u4(q, shape)
    else:
        # An odd row does not fill its last byte: OpenVINO packs without gaps, so it is kept at u8.
        wide = np.stack((q & 15, q >> 4), -1).reshape(rows, -1)[:, :columns] if bits == 4 else q
        values = ops.constant(np.ascontiguousarray(wide).reshape(shape))
        bits = 8
    grid = [*shape[:-1], 1]
    points = _points(zero.reshape(grid), bits)
    w = ops.subtract(ops.convert(values, "f32"), ops.convert(points, "f32"))
    factors = ops.constant(np.ascontiguousarray(scale.reshape(grid)))
    w = ops.multiply(w, factors if scale.dtype == np.float32 else ops.convert(factors, "f32"))
    if groups == 1:
        return w
    return ops.reshape(w, ops.constant(np.array([rows, columns])), False)


def _points(zero: np.ndarray[Any, Any], bits: int) -> Any:
    """Zero points of the weights' own width: the plugin compresses only where both agree."""
    import openvino.opset15 as ops

    if bits == 8:
        return ops.constant(zero)
    flat = zero.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return _u4(flat[0::2] | (flat[1::2] << 4), list(zero.shape))


def _u4(packed: np.ndarray[Any, Any], shape: list[int]) -> Any:
    """A constant of 4-bit values that owns its memory; ``packed`` holds two a byte, low first."""
    import openvino as ov

    tensor = ov.Tensor(ov.Type.u4, ov.Shape(shape))
    tensor.data.reshape(-1)[:] = packed.reshape(-1)
    return ov.op.Constant(tensor)
