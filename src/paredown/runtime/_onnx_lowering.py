"""ONNX's lowering table: paredown's operators -> QuantizeLinear pairs and integer products.

`torch.onnx` carries our operators over as nodes of the domain ``paredown``; `lower` then replaces
every one of them, weights in hand: the file holds standard and ONNX Runtime operators only.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch

from paredown.errors import LoweringError

DOMAIN = "paredown"
MICROSOFT = "com.microsoft"
BLOCKS = (128, 64, 32, 16)
"""Group sizes that MatMulNBits takes, preferred first."""

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


def lower(model: Any, *, products: bool = True) -> None:
    """Replace our operators in an ``onnx_ir`` model in place.

    Without ``products`` each becomes a standard operator of its own: the reference semantics.
    """
    _Lowering(model).run(products)


class _Lowering:
    """One pass over a graph: matrix products with quantized sides first, then what is left."""

    def __init__(self, model: Any) -> None:
        import onnx_ir as ir

        self.ir, self.model, self.graph = ir, model, model.graph
        self._constants: dict[tuple[Any, ...], Any] = {}

    def run(self, products: bool) -> None:
        for node in list(self.graph) if products else ():
            if node.op_type in ("MatMul", "Gemm") and node.domain == "":
                self._linear(node)
            elif node.op_type == "Conv" and node.domain == "":
                self._conv(node)
        self._sweep()
        for node in list(self.graph):
            if node.domain == DOMAIN:
                getattr(self, f"_{node.op_type.lower()}")(node)
        self._sweep()
        left = sorted({n.op_type for n in self.graph if n.domain == DOMAIN})
        if left:
            raise LoweringError(f"onnx: no lowering for {', '.join(left)} where the model uses it")
        self.model.opset_imports.pop(DOMAIN, None)
        if any(n.domain == MICROSOFT for n in self.graph):
            self.model.opset_imports[MICROSOFT] = 1

    # Matrix products.

    def _linear(self, node: Any) -> None:
        """A product with a quantized weight, as the operator that computes it so."""
        weight, transposed = node.inputs[1], False
        if node.op_type == "Gemm":
            if (
                _attr(node, "transA", 0)
                or _attr(node, "alpha", 1.0) != 1
                or _attr(node, "beta", 1.0) != 1
            ):
                return
            transposed = bool(_attr(node, "transB", 0))
        producer = weight.producer()
        if producer is not None and producer.op_type == "Transpose" and not transposed:
            transposed, weight = True, producer.inputs[0]
            producer = weight.producer()
        if (
            producer is None
            or producer.domain != DOMAIN
            or not transposed
            or not _constants(producer)
        ):
            return
        x = node.inputs[0]
        mode, source = _activation(x)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if producer.op_type == "DequantizeGroups":
            product = self._n_bits(node, x, *_groups(producer))
        elif mode == "static":
            product = self._static(node, x, *_rows(producer))
        elif mode == "dynamic":
            product = self._dynamic(node, source, *_rows(producer))
        else:
            product = self._n_bits(node, x, *_as_groups(*_rows(producer)))
        if product is None:
            return
        if bias is not None:
            product = self._put(node, "Add", [product, bias])
        self._replace(node, product)

    def _static(self, node: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
        """MatMulIntegerToFloat: the quantized activation times int8 weights, scaled per column."""
        made = x.producer()
        dtype = np.int8 if _signed(_quantizer(made.inputs[0])) else np.uint8
        x_scale, x_zero = self._grid(made, dtype)
        inputs = [
            made.inputs[0],
            self._constant(q.T),
            x_scale,
            self._constant(_squeeze(scale)),
            x_zero,
            self._constant(_squeeze(zero)),
        ]
        return self._put(node, "MatMulIntegerToFloat", inputs, domain=MICROSOFT, part="product")

    def _dynamic(self, node: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
        """DynamicQuantizeMatMul: the activation's range is found in the operator itself."""
        points = [] if not zero.any() else [self._constant(_squeeze(zero))]
        inputs = [x, self._constant(q.T), self._constant(_squeeze(scale)), *points]
        return self._put(node, "DynamicQuantizeMatMul", inputs, domain=MICROSOFT, part="product")

    def _n_bits(self, node: Any, x: Any, q: Any, scale: Any, zero: Any, bits: int) -> Any:
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
        points = zero if bits == 8 else _nibbles(zero)
        inputs = [
            x,
            self._constant(blob),
            self._constant(scale.reshape(-1)),
            self._constant(points.reshape(-1)),
        ]
        settings = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
        return self._put(node, "MatMulNBits", inputs, settings, domain=MICROSOFT, part="product")

    def _conv(self, node: Any) -> None:
        """Both sides quantized: what keeps ONNX Runtime from QLinearConv is put out of its way."""
        producer = node.inputs[1].producer()
        mode, _ = _activation(node.inputs[0])
        if mode != "static" or producer is None or not _constants(producer):
            return
        self._clip_after(node)
        bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] else None
        if bias is not None:
            self._integer_bias(node, producer, bias.numpy())

    def _integer_bias(self, node: Any, weight: Any, bias: np.ndarray[Any, Any]) -> None:
        """The bias as int32 on the product's own grid; left in float where it would overflow."""
        x_scale = _squeeze(_array(node.inputs[0].producer().inputs[1]))
        scale = np.atleast_1d(_squeeze(_array(weight.inputs[1]) * x_scale)).astype(np.float32)
        scale = np.broadcast_to(scale, bias.shape).copy()
        values = np.round(bias.astype(np.float64) / scale)
        if np.abs(values).max() >= 2**31:
            return
        inputs = [self._constant(values.astype(np.int32)), self._constant(scale)]
        node.replace_input_with(
            2, self._put(node, "DequantizeLinear", inputs, {"axis": 0}, part="bias")
        )

    def _clip_after(self, node: Any) -> None:
        """Conv -> Clip -> Quantize as Conv -> Quantize -> integer Clip: the same integers."""
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Clip" or len(uses[0].node.inputs) != 3:
            return
        clip = uses[0].node
        quantizers = [u.node for u in clip.outputs[0].uses()]
        bounds = [v.const_value for v in clip.inputs[1:] if v is not None]
        if len(bounds) != 2 or None in bounds or not quantizers:
            return
        if not all(q.op_type == "Quantize" and _per_tensor(q) for q in quantizers):
            return
        for q in quantizers:
            scale, zero = (_array(v).reshape(()) for v in q.inputs[1:])
            grid = [
                np.round(np.float32(b.numpy()) / scale.astype(np.float32)) + zero for b in bounds
            ]
            low, high = (int(np.clip(g, _attr(q, "qmin", 0), _attr(q, "qmax", 255))) for g in grid)
            self._clip_integers(q, node.outputs[0], low, high)

    def _clip_integers(self, q: Any, x: Any, low: int, high: int) -> None:
        lowest, highest = _attr(q, "qmin", 0), _attr(q, "qmax", 255)
        q.replace_input_with(0, x)
        if (low, high) == (lowest, highest):
            return
        signed = lowest < 0
        dtype = np.int8 if signed else np.uint8
        integer = self.ir.DataType.INT8 if signed else self.ir.DataType.UINT8
        users = list(q.outputs[0].uses())
        first = users[0].node
        bounds = [self._constant(np.array(v, dtype=dtype)) for v in (low, high)]
        clipped = self._put(first, "Clip", [q.outputs[0], *bounds], part="clip", dtype=integer)
        for use in users:
            use.node.replace_input_with(use.idx, clipped)

    # Single operators.

    def _quantize(self, node: Any) -> None:
        dtype = np.int8 if _attr(node, "qmin", 0) < 0 else np.uint8
        inputs = [node.inputs[0], *self._grid(node, dtype)]
        axis = {"axis": max(_attr(node, "axis", -1), 0)}
        integer = self.ir.DataType.INT8 if dtype is np.int8 else self.ir.DataType.UINT8
        self._replace(node, self._put(node, "QuantizeLinear", inputs, axis, dtype=integer))

    def _dequantize(self, node: Any) -> None:
        made = _quantizer(node.inputs[0])
        axis = {"axis": max(_attr(node, "axis", -1), 0)}
        if node.inputs[1].const_value is None:
            # From a dynamic quantize: its own scale and zero point, which ONNX keeps as scalars.
            inputs = list(node.inputs)
        else:
            signed = made is not None and made.op_type.startswith("Quantize") and _signed(made)
            constant = node.inputs[0].const_value
            dtype = (
                constant.numpy().dtype if constant is not None else np.int8 if signed else np.uint8
            )
            inputs = [node.inputs[0], *self._grid(node, dtype)]
        self._replace(node, self._put(node, "DequantizeLinear", inputs, axis))

    def _dequantizegroups(self, node: Any) -> None:
        """Groups no operator takes: dequantized as rows of a ``(rows * groups, size)`` table."""
        q, scale, zero, _bits = _groups(node)
        size = q.shape[1] // scale.shape[1]
        inputs = [
            self._constant(q.reshape(-1, size)),
            self._constant(scale.reshape(-1)),
            self._constant(zero.reshape(-1)),
        ]
        table = self._put(node, "DequantizeLinear", inputs, {"axis": 0}, part="table")
        shape = self._constant(np.array(q.shape, dtype=np.int64))
        self._replace(node, self._put(node, "Reshape", [table, shape]))

    def _embeddinggroups(self, node: Any) -> None:
        """Gather packed rows with their scales, unpack and dequantize just those."""
        index, q, scale, zero = node.inputs
        bits, columns = _attr(node, "bits", 8), _attr(node, "columns", 0)
        groups = _array(scale).shape[1]
        byte = self.ir.DataType.UINT8
        values = self._put(node, "Gather", [q, index], {"axis": 0}, part="rows", dtype=byte)
        shape = [int(d) for d in index.shape]
        if bits == 4:
            low = self._put(
                node, "BitwiseAnd", [values, self._constant(np.array(15, np.uint8))], dtype=byte
            )
            four = self._constant(np.array(4, np.uint8))
            high = self._put(node, "BitShift", [values, four], {"direction": "RIGHT"}, dtype=byte)
            last = self._constant(np.array([-1], np.int64))
            pair = [
                self._put(node, "Unsqueeze", [v, last], part=f"nibble{i}", dtype=byte)
                for i, v in enumerate((low, high))
            ]
            values = self._put(node, "Concat", pair, {"axis": -1}, dtype=byte)
            width = self._constant(np.array([*shape, 2 * _array(q).shape[1]], np.int64))
            values = self._put(node, "Reshape", [values, width], part="row", dtype=byte)
            if columns % 2:
                ends = [self._constant(np.array([v], np.int64)) for v in (0, columns, -1)]
                values = self._put(node, "Slice", [values, *ends], dtype=byte)
        grouped = self._constant(np.array([*shape, groups, columns // groups], np.int64))
        values = self._put(node, "Reshape", [values, grouped], part="groups", dtype=byte)
        parts = [
            self._put(
                node,
                "Unsqueeze",
                [
                    self._put(node, "Gather", [v, index], {"axis": 0}, part=name, dtype=t),
                    self._constant(np.array([-1], np.int64)),
                ],
                part=f"{name}s",
                dtype=t,
            )
            for name, v, t in (("scale", scale, None), ("zero", zero, byte))
        ]
        floats = [
            self._put(node, "Cast", [v], {"to": 1}, part=f"float{i}")
            for i, v in enumerate((values, parts[1]))
        ]
        shifted = self._put(node, "Sub", floats)
        scaled = self._put(node, "Mul", [shifted, parts[0]])
        flat = self._constant(np.array([*shape, columns], np.int64))
        self._replace(node, self._put(node, "Reshape", [scaled, flat], part="embedding"))

    def _dynamicquantize(self, node: Any) -> None:
        new = self.ir.node(
            "DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3, name=f"{node.name}/dynamic"
        )
        new.metadata_props.update(node.metadata_props)
        self.graph.insert_before(node, new)
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name = f"{old.name}_dynamic"
            self.ir.convenience.replace_all_uses_with(old, value)

    # Graph surgery.

    def _grid(self, node: Any, dtype: Any) -> list[Any]:
        scale, zero = _array(node.inputs[1]), _array(node.inputs[2])
        return [
            self._constant(_squeeze(scale.astype(np.float32))),
            self._constant(_squeeze(np.broadcast_to(zero.astype(dtype), scale.shape))),
        ]

    def _constant(self, array: np.ndarray[Any, Any]) -> Any:
        """An initializer; equal ones are one value, so that equal quantizers can be merged."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = self.ir.tensor(array, name=f"paredown_{len(self._constants)}")
            value = self.ir.Value(
                name=tensor.name,
                shape=tensor.shape,
                type=self.ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def _put(
        self,
        before: Any,
        op: str,
        inputs: list[Any],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        part: str = "",
        dtype: Any = None,
    ) -> Any:
        name = f"{before.name}/{part or op}"
        new = self.ir.node(op, inputs, attributes or {}, domain=domain, name=name)
        new.metadata_props.update(before.metadata_props)
        new.outputs[0].name = f"{before.outputs[0].name}_{part or op}"
        new.outputs[0].type = self.ir.TensorType(dtype or self.ir.DataType.FLOAT)
        self.graph.insert_before(before, new)
        return new.outputs[0]

    def _replace(self, node: Any, value: Any) -> None:
        old = node.outputs[0]
        value.shape, value.type = old.shape, old.type or value.type
        self.ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _sweep(self) -> None:
        """Remove nodes and initializers that nothing uses any more."""
        outputs = {id(v) for v in self.graph.outputs}
        for node in reversed(list(self.graph)):
            if all(not v.uses() and id(v) not in outputs for v in node.outputs):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and id(value) not in outputs:
                del self.graph.initializers[name]
                self._constants = {k: v for k, v in self._constants.items() if v is not value}


def _attr(node: Any, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _array(value: Any) -> np.ndarray[Any, Any]:
    if value.const_value is None:
        raise LoweringError(f"onnx: {value.name} must be a constant, it is computed by the model")
    return value.const_value.numpy()


def _squeeze(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.reshape(()) if array.size == 1 else array


def _constants(node: Any) -> bool:
    return all(v.const_value is not None for v in node.inputs)


def _per_tensor(node: Any) -> bool:
    scale, zero = (v.const_value for v in node.inputs[1:])
    return scale is not None and zero is not None and scale.size == 1


def _signed(node: Any) -> bool:
    if node.op_type == "Quantize":
        return _attr(node, "qmin", 0) < 0
    return _array(node.inputs[2]).dtype == np.int8


def _activation(x: Any) -> tuple[str | None, Any]:
    """How an input was quantized (``static``, ``dynamic``, None) and the float value behind it."""
    node = x.producer()
    if node is None or node.op_type != "Dequantize":
        return None, x
    made = _quantizer(node.inputs[0])
    if made is None:
        return None, x
    if made.op_type == "Quantize":
        return "static", made.inputs[0]
    return ("dynamic", made.inputs[0]) if made.op_type == "DynamicQuantize" else (None, x)


def _quantizer(q: Any) -> Any:
    """The node that made integers, seen through a clip of integers (`_clip_integers` puts one)."""
    made = q.producer()
    return made.inputs[0].producer() if made is not None and made.op_type == "Clip" else made


def _rows(node: Any) -> tuple[Any, Any, Any]:
    """Per-row int8 weights: values, scales, zero points (of the values' type)."""
    q, scale, zero = (_array(v) for v in node.inputs)
    return q, scale.astype(np.float32), np.broadcast_to(zero.astype(q.dtype), scale.shape)


def _groups(node: Any) -> tuple[Any, Any, Any, int]:
    """Grouped weights unpacked: values ``(rows, columns)``, scales and zeros ``(rows, groups)``."""
    q, scale, zero = (_array(v) for v in node.inputs)
    bits, columns = _attr(node, "bits", 8), _attr(node, "columns", q.shape[1])
    if bits == 4:
        q = np.stack((q & 15, q >> 4), -1).reshape(q.shape[0], -1)[:, :columns]
    return q, scale.astype(np.float32), zero.astype(np.uint8), bits


def _as_groups(q: Any, scale: Any, zero: Any) -> tuple[Any, Any, Any, int]:
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


def _nibbles(zero: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Zero points two to a byte along each row, the row padded to whole bytes."""
    wide = np.pad(zero, ((0, 0), (0, zero.shape[1] % 2)))
    return wide[:, 0::2] | (wide[:, 1::2] << 4)
