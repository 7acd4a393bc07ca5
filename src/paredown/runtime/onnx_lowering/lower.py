"""One pass over a graph: matrix products with quantized sides first, then what is left."""

from __future__ import annotations

from typing import Any

from paredown.errors import LoweringError
from paredown.runtime.onnx_lowering.convolution import convolution
from paredown.runtime.onnx_lowering.operators import DOMAIN, MICROSOFT
from paredown.runtime.onnx_lowering.product import product
from paredown.runtime.onnx_lowering.single import SINGLE
from paredown.runtime.onnx_lowering.surgery import Surgery


def lower(model: Any, *, products: bool = True) -> None:
    """Replace our operators in an ``onnx_ir`` model in place.

    Without ``products`` each becomes a standard operator of its own: the reference semantics.
    Raises ``LoweringError`` for an operator that is used where nothing can replace it.
    """
    surgery = Surgery(model.graph)
    for node in list(model.graph) if products else ():
        if node.op_type in ("MatMul", "Gemm") and node.domain == "":
            product(surgery, node)
        elif node.op_type == "Conv" and node.domain == "":
            convolution(surgery, node)
    surgery.sweep()
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in SINGLE:
            SINGLE[node.op_type](surgery, node)
    surgery.sweep()
    left = sorted({n.op_type for n in model.graph if n.domain == DOMAIN})
    if left:
        raise LoweringError(f"onnx: no lowering for {', '.join(left)} where the model uses it")
    model.opset_imports.pop(DOMAIN, None)
    if any(n.domain == MICROSOFT for n in model.graph):
        model.opset_imports[MICROSOFT] = 1
