"""A convolution with both sides quantized: ONNX Runtime's way to QLinearConv made free."""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.runtime.onnx_lowering import nodes
from paredown.runtime.onnx_lowering.surgery import Surgery


def convolution(surgery: Surgery, node: Any) -> None:
    """Both sides quantized: what keeps ONNX Runtime from QLinearConv is put out of its way."""
    producer = node.inputs[1].producer()
    mode, _ = nodes.activation(node.inputs[0])
    if mode != "static" or producer is None or not nodes.constants(producer):
        return
    _clip_after(surgery, node)
    bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] else None
    if bias is not None:
        _integer_bias(surgery, node, producer, bias.numpy())


def _integer_bias(surgery: Surgery, node: Any, weight: Any, bias: np.ndarray[Any, Any]) -> None:
    """The bias as int32 on the product's own grid; left in float where it would overflow."""
    x_scale = nodes.squeeze(nodes.array(node.inputs[0].producer().inputs[1]))
    scale = np.atleast_1d(nodes.squeeze(nodes.array(weight.inputs[1]) * x_scale)).astype(np.float32)
    scale = np.broadcast_to(scale, bias.shape).copy()
    values = np.round(bias.astype(np.float64) / scale)
    if np.abs(values).max() >= 2**31:
        return
    inputs = [surgery.constant(values.astype(np.int32)), surgery.constant(scale)]
    node.replace_input_with(
        2, surgery.put(node, "DequantizeLinear", inputs, {"axis": 0}, part="bias")
    )


def _clip_after(surgery: Surgery, node: Any) -> None:
    """Conv -> Clip -> Quantize as Conv -> Quantize -> integer Clip: the same integers."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Clip" or len(uses[0].node.inputs) != 3:
        return
    clip = uses[0].node
    quantizers = [u.node for u in clip.outputs[0].uses()]
    bounds = [v.const_value for v in clip.inputs[1:] if v is not None]
    if len(bounds) != 2 or None in bounds or not quantizers:
        return
    if not all(q.op_type == "Quantize" and nodes.per_tensor(q) for q in quantizers):
        return
    for q in quantizers:
        scale, zero = (nodes.array(v).reshape(()) for v in q.inputs[1:])
        grid = [np.round(np.float32(b.numpy()) / scale.astype(np.float32)) + zero for b in bounds]
        low, high = (
            int(np.clip(g, nodes.attr(q, "qmin", 0), nodes.attr(q, "qmax", 255))) for g in grid
        )
        _clip_integers(surgery, q, node.outputs[0], low, high)


def _clip_integers(surgery: Surgery, q: Any, x: Any, low: int, high: int) -> None:
    lowest, highest = nodes.attr(q, "qmin", 0), nodes.attr(q, "qmax", 255)
    q.replace_input_with(0, x)
    if (low, high) == (lowest, highest):
        return
    signed = lowest < 0
    dtype = np.int8 if signed else np.uint8
    integer = surgery.ir.DataType.INT8 if signed else surgery.ir.DataType.UINT8
    users = list(q.outputs[0].uses())
    first = users[0].node
    bounds = [surgery.constant(np.array(v, dtype=dtype)) for v in (low, high)]
    clipped = surgery.put(first, "Clip", [q.outputs[0], *bounds], part="clip", dtype=integer)
    for use in users:
        use.node.replace_input_with(use.idx, clipped)
