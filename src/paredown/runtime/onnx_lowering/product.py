"""A matrix product with a quantized weight, as the operator that computes it so."""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.runtime.onnx_lowering import nodes
from paredown.runtime.onnx_lowering.operators import DOMAIN, MICROSOFT
from paredown.runtime.onnx_lowering.surgery import Surgery

BLOCKS = (128, 64, 32, 16)
"""Group sizes that MatMulNBits takes, preferred first."""


def product(surgery: Surgery, node: Any) -> None:
    """A product with a quantized weight, as the operator that computes it so."""
    weight, transposed = node.inputs[1], False
    if node.op_type == "Gemm":
        if (
            nodes.attr(node, "transA", 0)
            or nodes.attr(node, "alpha", 1.0) != 1
            or nodes.attr(node, "beta", 1.0) != 1
        ):
            return
        transposed = bool(nodes.attr(node, "transB", 0))
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose" and not transposed:
        transposed, weight = True, producer.inputs[0]
        producer = weight.producer()
    if (
        producer is None
        or producer.domain != DOMAIN
        or not transposed
        or not nodes.constants(producer)
    ):
        return
    x = node.inputs[0]
    mode, source = nodes.activation(x)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if producer.op_type == "DequantizeGroups":
        made = _n_bits(surgery, node, x, *nodes.groups(producer))
    elif mode == "static":
        made = _static(surgery, node, x, *nodes.rows(producer))
    elif mode == "dynamic":
        made = _dynamic(surgery, node, source, *nodes.rows(producer))
    else:
        made = _n_bits(surgery, node, x, *nodes.as_groups(*nodes.rows(producer)))
    if made is None:
        return
    if bias is not None:
        made = surgery.put(node, "Add", [made, bias])
    surgery.replace(node, made)


def _static(surgery: Surgery, node: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
    """MatMulIntegerToFloat: the quantized activation times int8 weights, scaled per column."""
    made = x.producer()
    dtype = np.int8 if nodes.signed(nodes.quantizer(made.inputs[0])) else np.uint8
    x_scale, x_zero = surgery.grid(made, dtype)
    inputs = [
        made.inputs[0],
        surgery.constant(q.T),
        x_scale,
        surgery.constant(nodes.squeeze(scale)),
        x_zero,
        surgery.constant(nodes.squeeze(zero)),
    ]
    return surgery.put(node, "MatMulIntegerToFloat", inputs, domain=MICROSOFT, part="product")


def _dynamic(surgery: Surgery, node: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
    """DynamicQuantizeMatMul: the activation's range is found in the operator itself."""
    points = [] if not zero.any() else [surgery.constant(nodes.squeeze(zero))]
    inputs = [x, surgery.constant(q.T), surgery.constant(nodes.squeeze(scale)), *points]
    return surgery.put(node, "DynamicQuantizeMatMul", inputs, domain=MICROSOFT, part="product")


def _n_bits(surgery: Surgery, node: Any, x: Any, q: Any, scale: Any, zero: Any, bits: int) -> Any:
    """MatMulNBits over blocks of columns, in float; None where groups fit no block."""
    rows, columns = q.shape
    groups = scale.shape[1]
    size = columns // groups
    # One group to a row may be cut anywhere; several only where a block divides them.
    fitting = [b for b in BLOCKS if size % b == 0] or ([BLOCKS[-1]] if groups == 1 else [])
    if not fitting:
        return None
    block = fitting[0]
    repeat = -(-size // block)
    scale, zero = np.repeat(scale, repeat, 1), np.repeat(zero, repeat, 1)
    wide = np.pad(q, ((0, 0), (0, -columns % block)))
    blocks = wide.reshape(rows, -1, block)
    blob = blocks[..., 0::2] | (blocks[..., 1::2] << 4) if bits == 4 else blocks
    points = zero if bits == 8 else nodes.nibbles(zero)
    inputs = [
        x,
        surgery.constant(blob),
        surgery.constant(scale.reshape(-1)),
        surgery.constant(points.reshape(-1)),
    ]
    settings = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
    return surgery.put(node, "MatMulNBits", inputs, settings, domain=MICROSOFT, part="product")
