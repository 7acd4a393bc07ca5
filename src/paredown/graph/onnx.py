"""A Graph from an ONNX file: its operators under the names that the rules know, shapes inferred.

An operator without a counterpart, or whose shapes inference does not find (they depend on data),
keeps its ONNX name (``onnx::NonZero``) and is reported unpriced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

from paredown.graph.graph import Graph, Kind, Node, Ref, Storage, Tensor
from paredown.graph.rules import annotate

SMALL = 1024
"""Constants up to this many elements take part in shape inference with their values."""

DTYPES: dict[str, tuple[str, float]] = {
    "FLOAT": ("float32", 4),
    "DOUBLE": ("float64", 8),
    "FLOAT16": ("float16", 2),
    "BFLOAT16": ("bfloat16", 2),
    "INT64": ("int64", 8),
    "UINT64": ("uint64", 8),
    "INT32": ("int32", 4),
    "UINT32": ("uint32", 4),
    "INT16": ("int16", 2),
    "UINT16": ("uint16", 2),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "INT4": ("int4", 0.5),
    "UINT4": ("uint4", 0.5),
}

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"})
"""Give their first input another shape; ONNX runtimes do not copy for them."""

SAME = {
    "Abs": "abs", "Add": "add", "And": "logical_and", "ArgMax": "argmax", "ArgMin": "argmin",
    "BatchNormalization": "batch_norm", "Cast": "_to_copy", "Ceil": "ceil", "Clip": "clamp",
    "Concat": "cat", "ConstantOfShape": "full", "Cos": "cos", "CumSum": "cumsum", "Div": "div",
    "Elu": "elu", "Equal": "eq", "Erf": "erf", "Exp": "exp", "Expand": "expand_copy",
    "Floor": "floor", "GatherElements": "gather", "GatherND": "index", "Gelu": "gelu",
    "Greater": "gt", "GreaterOrEqual": "ge", "GroupNormalization": "group_norm",
    "HardSigmoid": "hardsigmoid", "HardSwish": "hardswish",
    "InstanceNormalization": "instance_norm", "LayerNormalization": "layer_norm",
    "LeakyRelu": "leaky_relu", "Less": "lt", "LessOrEqual": "le", "Log": "log",
    "LogSoftmax": "log_softmax", "Max": "maximum", "Min": "minimum", "Mish": "mish",
    "Mod": "remainder", "Mul": "mul", "Neg": "neg", "Not": "logical_not", "OneHot": "one_hot",
    "Or": "logical_or", "PRelu": "_prelu_kernel", "Pad": "constant_pad_nd", "Pow": "pow",
    "RMSNormalization": "rms_norm", "Range": "arange", "Reciprocal": "reciprocal",
    "ReduceL2": "linalg_vector_norm", "ReduceMax": "amax", "ReduceMean": "mean",
    "ReduceMin": "amin", "ReduceProd": "prod", "ReduceSum": "sum", "Relu": "relu",
    "Round": "round", "ScatterElements": "scatter", "Selu": "selu", "Sigmoid": "sigmoid",
    "Sign": "sign", "Sin": "sin", "Slice": "slice_copy", "Softmax": "softmax",
    "Softplus": "softplus", "Split": "split_copy", "Sqrt": "sqrt", "Sub": "sub",
    "Tan": "tan", "Tanh": "tanh", "Tile": "repeat", "Transpose": "permute_copy", "Where": "where",
    "GlobalAveragePool": "mean", "GlobalMaxPool": "amax", "Conv": "convolution",
    "MatMul": "matmul",
}  # fmt: skip
"""ONNX operator -> aten name, where the tensors stand in the same places."""

OURS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Quantize": ("quantize", ("qmin", "qmax", "axis")),
    "Dequantize": ("dequantize", ("axis",)),
    "DequantizeGroups": ("dequantize_groups", ("bits", "columns")),
    "DynamicQuantize": ("dynamic_quantize", ()),
}
"""Operators of the domain ``paredown`` -> their torch names, and settings behind the tensors."""

GRIDS = (".scale", ".zero", ".in_scale", ".in_zero")
"""Tensors of a quantized layer that are no weights: scales and zero points."""


def from_onnx(
    model: Any,
    inputs: Mapping[str, Sequence[int]],
    layers: Iterable[str] = (),
    precision: str = "float32",
) -> Graph:
    """The graph of an ``onnx.ModelProto`` run on inputs of the given shapes, priced by rules.

    ``layers`` are nodes that stand as modules of their own, operators of the domain ``paredown``
    known by their names in `runtime.ops`; ``precision`` is what float32 values are computed in.
    """
    build = _Build(model, inputs, layers, precision)
    for proto in build.graph.node:
        build.node(proto)
    return annotate(build.finish())


class _Build:
    """Values to tensors, nodes to calls, last uses to lifetimes."""

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Sequence[int]],
        layers: Iterable[str],
        precision: str,
    ) -> None:
        self.graph = model.graph
        self.layers, self.precision = frozenset(layers), precision
        self.fixed: set[str] = set()
        """Values that follow from weights alone: a runtime computes them once."""
        self.shapes = _shapes(model, inputs)
        self.nodes: list[Node] = []
        self.tensors: dict[int, Tensor] = {}
        self.storages: dict[int, Storage] = {}
        self.ids: dict[str, int] = {}
        for i in self.graph.initializer:
            weight = _dtype(i.data_type)[0] in ("float32", "float16", "bfloat16", "int8", "uint8")
            # A scalar is an operator's setting, not something that was learnt.
            kind: Kind = "parameter" if weight and i.dims else "constant"
            if i.name.endswith(GRIDS) and i.name.rpartition(".")[0] in self.layers:
                kind = "buffer"
            self._declare(i.name, tuple(i.dims), i.data_type, kind)
            self.fixed.add(i.name)
        for v in self.graph.input:
            if v.name not in self.ids:
                shape, dtype = self.shapes[v.name]
                self._declare(v.name, shape, dtype, "input")
        self.given = tuple(t.id for t in self.tensors.values() if t.kind == "input")

    def node(self, proto: Any) -> None:
        """Record one operator; constants become tensors without one."""
        if proto.op_type == "Constant":
            value = next((a.t for a in proto.attribute if a.name == "value"), None)
            dims, dtype = ((), 1) if value is None else (tuple(value.dims), value.data_type)
            self._declare(proto.output[0], dims, dtype, "constant")
            return
        index = len(self.nodes)
        ins = [self.ids[n] for n in proto.input if n in self.ids]
        known = all(n in self.shapes for n in proto.output if n)
        outs: list[int] = []
        for name in (n for n in proto.output if n):
            shape, dtype = self.shapes.get(name, ((), 1))
            share = self.tensors[ins[0]].storage if self._is_view(proto) and ins else None
            outs.append(self._declare(name, shape, dtype, "intermediate", index, share))
        op, args = self._call(proto) if known else (f"onnx::{proto.op_type}", ())
        if all(n in self.fixed for n in proto.input if n):
            self.fixed.update(proto.output)
        self.nodes.append(
            Node(index, op, tuple(ins), tuple(outs), args, {}, self._module(proto.name))
        )
        for i in ins:
            self.storages[self.tensors[i].storage].freed = index

    def _is_view(self, proto: Any) -> bool:
        """Whether an operator moves nothing; a weight is turned once, when the model is loaded."""
        turned = proto.op_type == "Transpose" and proto.input[0] in self.fixed
        return proto.op_type in VIEWS or turned

    def _module(self, name: str) -> str:
        """The layer that a node is or is part of, else the scope its name tells."""
        own = name.partition("/")[0]
        return own if own in self.layers else name.replace("/", ".").strip(".").rpartition(".")[0]

    def finish(self) -> Graph:
        """The graph; what the caller gave or gets is never freed by the run."""
        outputs = tuple(self.ids[o.name] for o in self.graph.output if o.name in self.ids)
        for s in self.storages.values():
            if s.created < 0:
                s.freed = None
        for i in outputs:
            self.storages[self.tensors[i].storage].freed = None
        kept = dict.fromkeys((n.module for n in self.nodes), "Scope") | {"": "OnnxModule"}
        kept |= {n.module: n.op.rpartition("::")[2] for n in self.nodes if n.module in self.layers}
        note = "operators of an ONNX file, under the names of their torch counterparts"
        return Graph(
            self.nodes, self.tensors, self.storages, self.given, outputs, kept, [note], None
        )

    def _declare(
        self,
        name: str,
        shape: tuple[int, ...],
        data_type: int,
        kind: Kind,
        created: int = -1,
        storage: int | None = None,
    ) -> int:
        dtype, width = _dtype(data_type)
        if dtype == "float32" and self.precision != dtype and kind == "intermediate":
            dtype, width = self.precision, 2
        nbytes = int(prod(shape) * width)
        if storage is None:
            storage = len(self.storages)
            self.storages[storage] = Storage(storage, nbytes, kind, created, max(created, 0))
        tid = len(self.tensors)
        known = None if kind == "intermediate" else name
        self.tensors[tid] = Tensor(tid, shape, dtype, nbytes, storage, kind, known)
        self.ids[name] = tid
        return tid

    def _call(self, proto: Any) -> tuple[str, tuple[Any, ...]]:
        """The rules' name of an operator, and its arguments where the rule looks for them."""
        refs = tuple(Ref(self.ids[n]) if n in self.ids else None for n in proto.input)
        if proto.domain == "paredown":
            name, settings = OURS[proto.op_type]
            return f"paredown::{name}", (*refs, *(_attribute(proto, s, None) for s in settings))
        special = SPECIAL.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
        if special is not None:
            return special(self, proto, refs)
        if self._is_view(proto):
            return "aten::view", refs
        if proto.op_type == "Shape":
            return "aten::size", refs
        if proto.domain in ("", "ai.onnx") and proto.op_type in SAME:
            return f"aten::{SAME[proto.op_type]}", refs
        return f"onnx::{proto.op_type}", refs

    def shape(self, proto: Any, index: int) -> tuple[int, ...]:
        """Shape of an input."""
        return self.tensors[self.ids[proto.input[index]]].shape


_Args = tuple[Any, ...]
_Special = Callable[[_Build, Any, _Args], tuple[str, _Args]]


def _gemm(_b: _Build, proto: Any, refs: _Args) -> tuple[str, _Args]:
    """``linear`` reads its depth from the input's last dimension: a transposed one is none."""
    if _attribute(proto, "transA", 0):
        return "onnx::Gemm", refs
    return "aten::linear", refs


def _conv_transpose(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    x, w, bias = (*refs, None)[:3]
    return "aten::convolution", (x, w, bias, None, None, None, True)


def _gather(b: _Build, proto: Any, refs: _Args) -> tuple[str, _Args]:
    table = len(b.shape(proto, 0)) == 2 and _attribute(proto, "axis", 0) == 0
    return ("aten::embedding" if table else "aten::index_select"), refs


def _pool(name: str) -> _Special:
    def pool(b: _Build, proto: Any, refs: _Args) -> tuple[str, _Args]:
        kernel = list(_attribute(proto, "kernel_shape", []))
        spatial = len(b.shape(proto, 0)) - 2
        return f"aten::{name}{spatial}d", (refs[0], kernel)

    return pool


def _resize(b: _Build, proto: Any, refs: _Args) -> tuple[str, _Args]:
    mode = _attribute(proto, "mode", b"nearest").decode()
    spatial = len(b.shape(proto, 0)) - 2
    linear = {1: "linear1d", 2: "bilinear2d", 3: "trilinear3d"}
    names = {"nearest": f"nearest{spatial}d", "linear": linear.get(spatial, "")}
    kind = names.get(mode, "bicubic2d")
    return f"aten::upsample_{kind}", (refs[0],)


def _topk(b: _Build, proto: Any, refs: _Args) -> tuple[str, _Args]:
    k = b.tensors[b.ids[proto.output[0]]].shape[_attribute(proto, "axis", -1)]
    return "aten::topk", (refs[0], k)


def _quantize(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "paredown::quantize", refs


def _dequantize(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "paredown::dequantize", refs


def _integer_product(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "aten::matmul", refs[:2]


def _integer_conv(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "aten::convolution", refs[:2]


def _qlinear_conv(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "aten::convolution", (refs[0], refs[3], refs[8] if len(refs) > 8 else None)


def _qlinear_product(_b: _Build, _proto: Any, refs: _Args) -> tuple[str, _Args]:
    return "aten::matmul", (refs[0], refs[3])


SPECIAL: dict[str, _Special] = {
    "AveragePool": _pool("avg_pool"),
    "ConvInteger": _integer_conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMulInteger": _integer_product,
    "MaxPool": _pool("max_pool"),
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_product,
    "QuantizeLinear": _quantize,
    "Resize": _resize,
    "TopK": _topk,
}
"""Operators whose arguments stand elsewhere in the rules."""


def _attribute(proto: Any, name: str, default: Any) -> Any:
    from onnx import helper

    found = next((a for a in proto.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _dtype(data_type: int) -> tuple[str, float]:
    import onnx

    return DTYPES.get(onnx.TensorProto.DataType.Name(data_type), ("unknown", 1))


def _shapes(
    model: Any, inputs: Mapping[str, Sequence[int]]
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and dtype of every value whose shape can be inferred, by name.

    Inference runs on a copy without large weights, with the inputs' shapes filled in.
    """
    import onnx
    from onnx import helper

    graph = model.graph
    large = [i for i in graph.initializer if prod(i.dims) > SMALL or not _has_values(i)]
    names = {i.name for i in graph.initializer}
    given = [
        helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, list(inputs[v.name]))
        for v in graph.input
        if v.name not in names
    ]
    given += [helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in large]
    outputs = [onnx.ValueInfoProto(name=o.name) for o in graph.output]
    small = [i for i in graph.initializer if prod(i.dims) <= SMALL and _has_values(i)]
    nodes, made = _standing_in(graph)
    bare = helper.make_model(
        helper.make_graph(nodes, "shapes", given + made, outputs, small),
        opset_imports=[o for o in model.opset_import if o.domain != "paredown"],
    )
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for v in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = v.type.tensor_type
        dims = list(tensor.shape.dim)
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found[v.name] = (tuple(d.dim_value for d in dims), tensor.elem_type)
    return found


def _has_values(tensor: Any) -> bool:
    """Whether a tensor carries its values, not its shape and type alone."""
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    return prod(tensor.dims) == 0 or any(len(getattr(tensor, f)) for f in fields)


def _standing_in(graph: Any) -> tuple[list[Any], list[Any]]:
    """The nodes with `paredown` operators replaced by standard ones of equal shapes and types.

    Weights in groups, which no standard operator unpacks, become inputs: the second list.
    """
    from onnx import TensorProto, helper

    dims = {i.name: list(i.dims) for i in graph.initializer}
    nodes: list[Any] = []
    made: list[Any] = []
    for node in graph.node:
        if node.domain != "paredown":
            nodes.append(node)
        elif node.op_type == "DequantizeGroups":
            shape = [dims[node.input[1]][0], _attribute(node, "columns", 0)]
            info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape)
            made.append(info)
        elif node.op_type == "DynamicQuantize":
            nodes.append(helper.make_node("DynamicQuantizeLinear", node.input[:1], node.output))
        else:
            signed = _attribute(node, "qmin", 0) < 0
            integer = TensorProto.INT8 if signed else TensorProto.UINT8
            to = integer if node.op_type == "Quantize" else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", node.input[:1], node.output, to=to))
    return nodes, made
