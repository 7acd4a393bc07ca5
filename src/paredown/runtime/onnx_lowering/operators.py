"""Our operators in ONNX: their schemas, and the table that `torch.onnx` translates them by."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

DOMAIN = "paredown"
MICROSOFT = "com.microsoft"

_TYPES = ("float", "bfloat16", "float16", "uint8", "int8", "int32", "int64")
_OPERATORS = {
    "Quantize": (("x", "scale", "zero"), ("q",), ("qmin", "qmax", "axis")),
    "Dequantize": (("q", "scale", "zero"), ("x",), ("axis", "dtype")),
    "DequantizeGroups": (("q", "scale", "zero"), ("x",), ("bits", "columns", "dtype")),
    "EmbeddingGroups": (
        ("index", "q", "scale", "zero"),
        ("x",),
        ("bits", "columns", "dtype"),
    ),
    "DynamicQuantize": (("x",), ("q", "scale", "zero"), ()),
}


@cache
def translations() -> dict[Any, Any]:
    """``torch.onnx.export``'s table for our operators (registers their ONNX schemas once)."""
    import onnx
    from onnxscript.values import Opset

    # Importing defines the operators that the table names.
    importlib.import_module("paredown.runtime.ops")
    schema = onnx.defs.OpSchema
    types = [f"tensor({t})" for t in _TYPES]
    for name, (inputs, outputs, attributes) in _OPERATORS.items():
        # A first call that failed half way has left some of them behind.
        if onnx.defs.has(name, DOMAIN):
            continue
        slots = [*inputs, *outputs]
        formal = [schema.FormalParameter(n, f"T{i}") for i, n in enumerate(slots)]
        onnx.defs.register_schema(
            schema(
                name,
                DOMAIN,
                1,
                inputs=formal[: len(inputs)],
                outputs=formal[len(inputs) :],
                type_constraints=[(f"T{i}", types, "") for i in range(len(slots))],
                attributes=[schema.Attribute(a, schema.AttrType.INT, "") for a in attributes],
            )
        )
    domain: Any = Opset(DOMAIN, 1)

    def quantize(x: Any, scale: Any, zero: Any, qmin: int, qmax: int, axis: int) -> Any:
        return domain.Quantize(x, scale, zero, qmin=qmin, qmax=qmax, axis=axis)

    def dequantize(q: Any, scale: Any, zero: Any, axis: int, dtype: int) -> Any:
        return domain.Dequantize(q, scale, zero, axis=axis, dtype=dtype)

    def dequantize_groups(
        q: Any, scale: Any, zero: Any, bits: int, columns: int, dtype: int
    ) -> Any:
        return domain.DequantizeGroups(q, scale, zero, bits=bits, columns=columns, dtype=dtype)

    def embedding_groups(
        index: Any, q: Any, scale: Any, zero: Any, bits: int, columns: int, dtype: int
    ) -> Any:
        settings = {"bits": bits, "columns": columns, "dtype": dtype}
        return domain.EmbeddingGroups(index, q, scale, zero, **settings)

    def dynamic_quantize(x: Any) -> Any:
        return domain.DynamicQuantize(x)

    ours = torch.ops.paredown
    return {
        ours.quantize.default: quantize,
        ours.dequantize.default: dequantize,
        ours.dequantize_groups.default: dequantize_groups,
        ours.embedding_groups.default: embedding_groups,
        ours.dynamic_quantize.default: dynamic_quantize,
    }
