"""What no product took: each of our operators as standard operators of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paredown.runtime.onnx_lowering import nodes
from paredown.runtime.onnx_lowering.surgery import Surgery


def _quantize(surgery: Surgery, node: Any) -> None:
    dtype = np.int8 if nodes.attr(node, "qmin", 0) < 0 else np.uint8
    if nodes.narrow(node):
        surgery.replace(node, _narrow(surgery, node, dtype))
        return
    inputs = [node.inputs[0], *surgery.grid(node, dtype)]
    axis = {"axis": max(nodes.attr(node, "axis", -1), 0)}
    integer = surgery.ir.DataType.INT8 if dtype is np.int8 else surgery.ir.DataType.UINT8
    surgery.replace(node, surgery.put(node, "QuantizeLinear", inputs, axis, dtype=integer))


def _narrow(surgery: Surgery, node: Any, dtype: Any) -> Any:
    """Codes of another range than a byte's, or around a zero point outside of it: by arithmetic."""
    scale, zero = _floats(surgery, node)
    ends = [
        surgery.constant(np.array(nodes.attr(node, n, 0), np.float32)) for n in ("qmin", "qmax")
    ]
    x = surgery.put(node, "Round", [surgery.put(node, "Div", [node.inputs[0], scale])])
    x = surgery.put(node, "Clip", [surgery.put(node, "Add", [x, zero]), *ends])
    integer = surgery.ir.DataType.INT8 if dtype is np.int8 else surgery.ir.DataType.UINT8
    return surgery.put(node, "Cast", [x], {"to": int(integer)}, dtype=integer)


def _floats(surgery: Surgery, node: Any) -> list[Any]:
    """Scale and zero point of one range as float32 constants."""
    found = (nodes.array(v).astype(np.float32) for v in node.inputs[1:3])
    return [surgery.constant(nodes.squeeze(v)) for v in found]


def _dequantize(surgery: Surgery, node: Any) -> None:
    made = nodes.quantizer(node.inputs[0])
    if made is not None and made.op_type == "Cast":  # `_narrow` made these codes
        scale, zero = _floats(surgery, node)
        floats = surgery.put(node, "Cast", [node.inputs[0]], {"to": 1})
        shifted = surgery.put(node, "Sub", [floats, zero])
        surgery.replace(node, surgery.put(node, "Mul", [shifted, scale]))
        return
    axis = {"axis": max(nodes.attr(node, "axis", -1), 0)}
    if node.inputs[1].const_value is None:
        # From a dynamic quantize: its own scale and zero point, which ONNX keeps as scalars.
        inputs = list(node.inputs)
    else:
        signed = made is not None and made.op_type.startswith("Quantize") and nodes.signed(made)
        constant = node.inputs[0].const_value
        dtype = constant.numpy().dtype if constant is not None else np.int8 if signed else np.uint8
        inputs = [node.inputs[0], *surgery.grid(node, dtype)]
    surgery.replace(node, surgery.put(node, "DequantizeLinear", inputs, axis))


def _dequantize_groups(surgery: Surgery, node: Any) -> None:
    """Groups no operator takes: dequantized as rows of a ``(rows * groups, size)`` table."""
    q, scale, zero, _bits = nodes.groups(node)
    size = q.shape[1] // scale.shape[1]
    inputs = [
        surgery.constant(q.reshape(-1, size)),
        surgery.constant(scale.reshape(-1)),
        surgery.constant(zero.reshape(-1)),
    ]
    table = surgery.put(node, "DequantizeLinear", inputs, {"axis": 0}, part="table")
    shape = surgery.constant(np.array(q.shape, dtype=np.int64))
    surgery.replace(node, surgery.put(node, "Reshape", [table, shape]))


def _embedding_groups(surgery: Surgery, node: Any) -> None:
    """Gather packed rows with their scales, unpack and dequantize just those."""
    index, q, scale, zero = node.inputs
    bits, columns = nodes.attr(node, "bits", 8), nodes.attr(node, "columns", 0)
    wide = nodes.array(scale).astype(np.float32)
    scale, groups = surgery.constant(wide), wide.shape[1]
    byte = surgery.ir.DataType.UINT8
    values = surgery.put(node, "Gather", [q, index], {"axis": 0}, part="rows", dtype=byte)
    shape = [int(d) for d in index.shape]
    if bits == 4:
        low = surgery.put(
            node, "BitwiseAnd", [values, surgery.constant(np.array(15, np.uint8))], dtype=byte
        )
        four = surgery.constant(np.array(4, np.uint8))
        high = surgery.put(node, "BitShift", [values, four], {"direction": "RIGHT"}, dtype=byte)
        last = surgery.constant(np.array([-1], np.int64))
        pair = [
            surgery.put(node, "Unsqueeze", [v, last], part=f"nibble{i}", dtype=byte)
            for i, v in enumerate((low, high))
        ]
        values = surgery.put(node, "Concat", pair, {"axis": -1}, dtype=byte)
        width = surgery.constant(np.array([*shape, 2 * nodes.array(q).shape[1]], np.int64))
        values = surgery.put(node, "Reshape", [values, width], part="row", dtype=byte)
        if columns % 2:
            ends = [surgery.constant(np.array([v], np.int64)) for v in (0, columns, -1)]
            values = surgery.put(node, "Slice", [values, *ends], dtype=byte)
    grouped = surgery.constant(np.array([*shape, groups, columns // groups], np.int64))
    values = surgery.put(node, "Reshape", [values, grouped], part="groups", dtype=byte)
    parts = [
        surgery.put(
            node,
            "Unsqueeze",
            [
                surgery.put(node, "Gather", [v, index], {"axis": 0}, part=name, dtype=t),
                surgery.constant(np.array([-1], np.int64)),
            ],
            part=f"{name}s",
            dtype=t,
        )
        for name, v, t in (("scale", scale, None), ("zero", zero, byte))
    ]
    floats = [
        surgery.put(node, "Cast", [v], {"to": 1}, part=f"float{i}")
        for i, v in enumerate((values, parts[1]))
    ]
    shifted = surgery.put(node, "Sub", floats)
    scaled = surgery.put(node, "Mul", [shifted, parts[0]])
    flat = surgery.constant(np.array([*shape, columns], np.int64))
    surgery.replace(node, surgery.put(node, "Reshape", [scaled, flat], part="embedding"))


def _dynamic_quantize(surgery: Surgery, node: Any) -> None:
    new = surgery.ir.node(
        "DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3, name=f"{node.name}/dynamic"
    )
    new.metadata_props.update(node.metadata_props)
    surgery.graph.insert_before(node, new)
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.name = f"{old.name}_dynamic"
        surgery.ir.convenience.replace_all_uses_with(old, value)


SINGLE: Mapping[str, Callable[[Surgery, Any], None]] = {
    "Quantize": _quantize,
    "Dequantize": _dequantize,
    "DequantizeGroups": _dequantize_groups,
    "EmbeddingGroups": _embedding_groups,
    "DynamicQuantize": _dynamic_quantize,
}
"""How each of our operators is replaced, by its ONNX name."""
