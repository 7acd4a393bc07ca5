"""From a skeleton and its layers back to an ONNX model, in the operators of `runtime.ops`.

A layer that a technique swapped for a form becomes quantize and dequantize nodes of the domain
``paredown`` around its own operator, as `torch.onnx` writes them for a torch model. Each backend's
lowering table then does the rest; `lowered` is ONNX Runtime's, and with ``products=False`` the
reference: standard operators only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import LoweringError
from paredown.runtime import quantized
from paredown.runtime.backend import Asked
from paredown.runtime.onnx_layers import OnnxLayer, OnnxLinear
from paredown.runtime.onnx_lowering import DOMAIN


def render(
    skeleton: Any, layers: Mapping[str, nn.Module], *, values: bool = True, dynamic: bool = True
) -> Any:
    """A ``ModelProto`` of the skeleton with its layers as they are now.

    Without ``values`` tensors of layers have shapes and types only, which is enough to price it.
    Without ``dynamic`` ranges taken at run time are left to a runtime that quantizes by itself.
    """
    return _Render(skeleton, layers, values, dynamic).run()


def lowered(model: Any, *, products: bool = True) -> Any:
    """The same with standard and ONNX Runtime operators only, as an ``onnx_ir`` model."""
    import onnx_ir as ir

    from paredown.runtime import onnx_lowering as table

    found = ir.from_proto(model)
    table.lower(found, products=products)
    return found


def asked_of(layers: Mapping[str, nn.Module], precision: str) -> dict[str, Asked]:
    """What each layer asks of the numbers, by path."""
    return {path: Asked(*_numbers(m), dtype=precision) for path, m in layers.items()}


def _numbers(module: nn.Module) -> tuple[str | None, str | None]:
    if isinstance(module, (quantized.QuantLinear, quantized.QuantConv)):
        return "int8", "static"
    if isinstance(module, quantized.DynamicLinear):
        return "int8", "dynamic"
    if isinstance(module, quantized.WeightOnlyConv):
        return "int8", None
    if isinstance(module, quantized.WeightOnlyLinear):
        return ("int4" if module.bits == 4 else "int8"), None
    return None, None


class _Render:
    """One pass over the nodes; layers become one node or several."""

    def __init__(
        self, skeleton: Any, layers: Mapping[str, nn.Module], values: bool, dynamic: bool
    ) -> None:
        self.layers, self.values, self.dynamic = layers, values, dynamic
        self.model = type(skeleton)()
        self.model.CopyFrom(skeleton)
        self.graph = self.model.graph

    def run(self) -> Any:
        from onnx import helper

        nodes = [made for node in self.graph.node for made in self._node(node)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        if any(n.domain == DOMAIN for n in nodes):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return self.model

    def _node(self, proto: Any) -> list[Any]:
        node = type(proto)()
        node.CopyFrom(proto)
        layer: Any = self.layers.get(node.name)
        if layer is None or getattr(layer, "refusal", None):
            return [node]
        if isinstance(layer, nn.Identity):
            return [self._made(node.name, "Identity", node.input[:1], node.output)]
        if isinstance(layer, OnnxLayer):
            turned = isinstance(layer, OnnxLinear) and not _gives(node, "transB")
            assert layer.weight is not None
            weight = layer.weight.t() if turned else layer.weight
            node.input[1] = self._tensor(node.name, "weight", weight)
            return [node, *self._bias(node, layer.bias)]
        around = self._form(node, layer)
        return [*around, node, *self._bias(node, layer.bias)]

    def _form(self, node: Any, layer: Any) -> list[Any]:
        """The nodes before a layer's own operator, whose inputs now come from them."""
        path, x = node.name, node.input[0]
        if isinstance(layer, quantized.WeightOnlyLinear):
            columns = layer.in_features
            settings = {"bits": layer.bits, "columns": columns, "dtype": 1}
            made = [self._weight(path, layer, "DequantizeGroups", settings)]
            return made + self._turn(node, made[-1].output[0])
        made = [self._weight(path, layer, "Dequantize", {"axis": 0, "dtype": 1})]
        if isinstance(layer, (quantized.QuantConv, quantized.QuantLinear)):
            scale = self._tensor(path, "in_scale", layer.in_scale)
            zero = self._tensor(path, "in_zero", layer.in_zero)
            grid = {"qmin": 0, "qmax": 255, "axis": -1}
            made.append(self._ours(path, "Quantize", [x, scale, zero], 1, grid))
            made.append(self._dequantized(path, [made[-1].output[0], scale, zero]))
            node.input[0] = made[-1].output[0]
        elif isinstance(layer, quantized.DynamicLinear):
            if self.dynamic:
                made.append(self._ours(path, "DynamicQuantize", [x], 3, {}))
                made.append(self._dequantized(path, list(made[-1].output)))
                node.input[0] = made[-1].output[0]
        elif not isinstance(layer, quantized.WeightOnlyConv):
            raise LoweringError(f"{path}: an ONNX file has no form for {type(layer).__name__}")
        if node.op_type == "Conv":
            node.input[1] = made[0].output[0]
            return made
        return made + self._turn(node, made[0].output[0])

    def _weight(self, path: str, layer: Any, op: str, settings: dict[str, int]) -> Any:
        # ONNX Runtime's operators take float32 scales beside float32 inputs.
        tensors = {"weight": layer.weight, "scale": layer.scale.float(), "zero": layer.zero}
        parts = [self._tensor(path, n, t) for n, t in tensors.items()]
        return self._made(f"{path}/weight", op, parts, [f"{path}/weight"], settings, DOMAIN)

    def _dequantized(self, path: str, inputs: list[str]) -> Any:
        settings = {"axis": -1, "dtype": 1}
        return self._made(f"{path}/seen", "Dequantize", inputs, [f"{path}/seen"], settings, DOMAIN)

    def _ours(
        self, path: str, op: str, inputs: list[str], count: int, settings: dict[str, int]
    ) -> Any:
        outputs = [f"{path}/q{i}" for i in range(count)]
        return self._made(f"{path}/{op}", op, inputs, outputs, settings, DOMAIN)

    def _turn(self, node: Any, weight: str) -> list[Any]:
        """Give a linear operator its ``(out, in)`` weight: a Gemm takes it as it is."""
        from onnx import helper

        if node.op_type == "Gemm":
            kept = [a for a in node.attribute if a.name != "transB"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("transB", 1)])
            node.input[1] = weight
            return []
        node.input[1] = f"{node.name}/turned"
        turn = self._made(
            f"{node.name}/turn", "Transpose", [weight], [node.input[1]], {"perm": [1, 0]}
        )
        return [turn]

    def _bias(self, node: Any, bias: Tensor | None) -> list[Any]:
        """The layer's own bias at its input, or added behind a product that takes none."""
        if bias is None:
            return []
        name = self._tensor(node.name, "bias", bias.float())
        if node.op_type != "MatMul":
            del node.input[2:]
            node.input.append(name)
            return []
        out = node.output[0]
        node.output[0] = f"{node.name}/product"
        return [self._made(f"{node.name}/bias", "Add", [node.output[0], name], [out])]

    def _tensor(self, path: str, name: str, value: Tensor) -> str:
        from onnx import TensorProto, numpy_helper

        full = f"{path}.{name}"
        tensor = self.graph.initializer.add()
        if self.values:
            # ONNX Runtime's CPU has no bfloat16: rounded values stand in float32.
            plain = value.float() if value.dtype == torch.bfloat16 else value
            tensor.CopyFrom(numpy_helper.from_array(plain.detach().contiguous().numpy(), full))
        else:
            kind = _TYPES[value.dtype]
            tensor.CopyFrom(TensorProto(name=full, dims=list(value.shape), data_type=kind))
        return full

    def _made(
        self,
        name: str,
        op: str,
        inputs: Any,
        outputs: Any,
        settings: dict[str, Any] | None = None,
        domain: str = "",
    ) -> Any:
        from onnx import helper

        return helper.make_node(
            op, list(inputs), list(outputs), name=name, domain=domain, **(settings or {})
        )


_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int32: 6,
    torch.bfloat16: 16,
}
"""torch dtypes as ``TensorProto`` numbers them."""


def _gives(node: Any, name: str) -> bool:
    return any(a.name == name and a.i for a in node.attribute)
