"""What a node says: attributes and constants, how its input was quantized, its weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from paredown.errors import LoweringError


def attr(node: Any, name: str, default: Any) -> Any:
    """An attribute's value, ``default`` where the node has none of that name."""
    return node.attributes[name].value if name in node.attributes else default


def array(value: Any) -> np.ndarray[Any, Any]:
    """A constant's numbers. Raises ``LoweringError`` for a value that the model computes."""
    if value.const_value is None:
        raise LoweringError(f"onnx: {value.name} must be a constant, it is computed by the model")
    return value.const_value.numpy()


def squeeze(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A scalar where there is one number alone: ONNX tells per tensor from per channel so."""
    return array.reshape(()) if array.size == 1 else array


def constants(node: Any) -> bool:
    """Whether all that a node reads is constant."""
    return all(v.const_value is not None for v in node.inputs)


def per_tensor(node: Any) -> bool:
    """Whether a quantizer has one constant scale for the whole tensor."""
    scale, zero = (v.const_value for v in node.inputs[1:])
    return scale is not None and zero is not None and scale.size == 1


def narrow(node: Any) -> bool:
    """Whether a quantizer's codes or zero points do not fill or fit a byte's range."""
    low, high = attr(node, "qmin", 0), attr(node, "qmax", 255)
    zero = node.inputs[2].const_value
    if zero is not None and not ((zero.numpy() >= min(low, 0)) & (zero.numpy() <= 255)).all():
        return True
    return (low, high) not in ((0, 255), (-128, 127), (-127, 127))


def signed(node: Any) -> bool:
    """Whether a quantizer gives int8 (else uint8)."""
    if node.op_type == "Quantize":
        return attr(node, "qmin", 0) < 0
    return array(node.inputs[2]).dtype == np.int8


def activation(x: Any) -> tuple[str | None, Any]:
    """How an input was quantized (``static``, ``dynamic``, None) and the float value behind it."""
    node = x.producer()
    if node is None or node.op_type != "Dequantize":
        return None, x
    made = quantizer(node.inputs[0])
    if made is None:
        return None, x
    if made.op_type == "Quantize":
        return "static", made.inputs[0]
    return ("dynamic", made.inputs[0]) if made.op_type == "DynamicQuantize" else (None, x)


def quantizer(q: Any) -> Any:
    """The node that made integers, seen through a clip of integers (`convolution` puts one)."""
    made = q.producer()
    return made.inputs[0].producer() if made is not None and made.op_type == "Clip" else made


def rows(node: Any) -> tuple[Any, Any, Any]:
    """Per-row int8 weights: values, scales, zero points (of the values' type)."""
    q, scale, zero = (array(v) for v in node.inputs)
    return q, scale.astype(np.float32), np.broadcast_to(zero.astype(q.dtype), scale.shape)


def groups(node: Any) -> tuple[Any, Any, Any, int]:
    """Grouped weights unpacked: values ``(rows, columns)``, scales and zeros ``(rows, groups)``."""
    q, scale, zero = (array(v) for v in node.inputs)
    bits, columns = attr(node, "bits", 8), attr(node, "columns", q.shape[1])
    if bits == 4:
        q = np.stack((q & 15, q >> 4), -1).reshape(q.shape[0], -1)[:, :columns]
    return q, scale.astype(np.float32), zero.astype(np.uint8), bits


def as_groups(q: Any, scale: Any, zero: Any) -> tuple[Any, Any, Any, int]:
    """Per-row int8 weights as one unsigned group to a row."""
    shift = 128 if q.dtype == np.int8 else 0
    values, points = ((a.astype(np.int16) + shift).astype(np.uint8) for a in (q, zero))
    rows = (q.shape[0], 1)
    return (
        values,
        np.broadcast_to(scale.reshape(-1, 1), rows).astype(np.float32),
        np.broadcast_to(points.reshape(-1, 1), rows),
        8,
    )


def nibbles(zero: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Zero points two to a byte along each row, the row padded to whole bytes."""
    wide = np.pad(zero, ((0, 0), (0, zero.shape[1] % 2)))
    return wide[:, 0::2] | (wide[:, 1::2] << 4)
