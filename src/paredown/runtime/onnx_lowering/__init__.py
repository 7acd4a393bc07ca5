"""ONNX's lowering table: paredown's operators -> QuantizeLinear pairs and integer products.

`torch.onnx` carries our operators over as nodes of the domain ``paredown`` (`translations`);
`lower` then replaces every one of them, weights in hand: the file holds standard and ONNX Runtime
operators only.
"""

from paredown.runtime.onnx_lowering.lower import lower
from paredown.runtime.onnx_lowering.operators import DOMAIN, translations

__all__ = ["DOMAIN", "lower", "translations"]
