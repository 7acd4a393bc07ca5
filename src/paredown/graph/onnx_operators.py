"""ONNX operators under the names that the rules know, their arguments where the rules look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

Args = tuple[Any, ...]
Shape = Callable[[str], Sequence[int]]
"""The shape of a value by its name."""


def called(proto: Any, refs: Args, shape: Shape, *, view: bool) -> tuple[str, Args]:
    """The rules' name of a node's operator, and its arguments where the rule looks for them.

    ``refs`` are its inputs in order; ``view`` says that it moves nothing. An operator without a
    counterpart keeps its ONNX name (``onnx::NonZero``).
    """
    if proto.domain == "paredown":
        name, settings = OURS[proto.op_type]
        return f"paredown::{name}", (*refs, *(attribute(proto, s, None) for s in settings))
    standard = proto.domain in ("", "ai.onnx")
    special = SPECIAL.get(proto.op_type) if standard else None
    if special is not None:
        return special(proto, refs, shape)
    if view:
        return "aten::view", refs
    if proto.op_type == "Shape":
        return "aten::size", refs
    if standard and proto.op_type in SAME:
        return f"aten::{SAME[proto.op_type]}", refs
    return f"onnx::{proto.op_type}", refs


_Special = Callable[[Any, Args, Shape], tuple[str, Args]]


def _gemm(proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    """``linear`` reads its depth from the input's last dimension: a transposed one is none."""
    if attribute(proto, "transA", 0):
        return "onnx::Gemm", refs
    return "aten::linear", refs


def _conv_transpose(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    x, w, bias = (*refs, None)[:3]
    return "aten::convolution", (x, w, bias, None, None, None, True)


def _gather(proto: Any, refs: Args, shape: Shape) -> tuple[str, Args]:
    table = len(shape(proto.input[0])) == 2 and attribute(proto, "axis", 0) == 0
    return ("aten::embedding" if table else "aten::index_select"), refs


def _pool(name: str) -> _Special:
    def pool(proto: Any, refs: Args, shape: Shape) -> tuple[str, Args]:
        kernel = list(attribute(proto, "kernel_shape", []))
        spatial = len(shape(proto.input[0])) - 2
        return f"aten::{name}{spatial}d", (refs[0], kernel)

    return pool


def _resize(proto: Any, refs: Args, shape: Shape) -> tuple[str, Args]:
    mode = attribute(proto, "mode", b"nearest").decode()
    spatial = len(shape(proto.input[0])) - 2
    linear = {1: "linear1d", 2: "bilinear2d", 3: "trilinear3d"}
    names = {"nearest": f"nearest{spatial}d", "linear": linear.get(spatial, "")}
    kind = names.get(mode, "bicubic2d")
    return f"aten::upsample_{kind}", (refs[0],)


def _topk(proto: Any, refs: Args, shape: Shape) -> tuple[str, Args]:
    k = shape(proto.output[0])[attribute(proto, "axis", -1)]
    return "aten::topk", (refs[0], k)


def _quantize(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    return "paredown::quantize", refs


def _dequantize(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    return "paredown::dequantize", refs


def _integer_product(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    return "aten::matmul", refs[:2]


def _integer_conv(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    return "aten::convolution", refs[:2]


def _qlinear_conv(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
    return "aten::convolution", (refs[0], refs[3], refs[8] if len(refs) > 8 else None)


def _qlinear_product(_proto: Any, refs: Args, _shape: Shape) -> tuple[str, Args]:
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


def attribute(proto: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, ``default`` where it has none of that name."""
    from onnx import helper

    found = next((a for a in proto.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
