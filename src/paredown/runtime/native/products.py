"""Convolutions and linear layers, and what is fused into them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from paredown.runtime.native import padded, views
from paredown.runtime.native.builder import (
    FLOATS,
    Builder,
    Dequantized,
    Grouped,
    Lacking,
    Product,
)
from paredown.runtime.native.plan import Step, Tensor
from paredown.runtime.native.rules import argument, dtype_of, pair, result, rule

FEW_ROWS = 4
"""Rows of activations that packed weights are multiplied with as they are: the kernel's width.
For more, unpacking them again for every four rows costs more than reading floats does."""


def _operand(b: Builder, node: Any) -> tuple[Tensor, torch.Tensor | None]:
    """The tensor a product reads, with its scale where it is quantized."""
    value, _, _ = padded.unpadded(b, node)
    if isinstance(value, Dequantized) and isinstance(value.q, Tensor) and value.q.dtype == "uint8":
        return value.q, value.scale
    return b.tensor(node if value is b.env[node] else value), None


def _weight(b: Builder, node: Any, quantized: bool, kind: str) -> tuple[torch.Tensor, Any, Any]:
    """The weight as it is multiplied: its values, dtype, and scale per channel for int8."""
    value = b.env[node]
    if isinstance(value, Dequantized) and isinstance(value.q, torch.Tensor):
        plain = value.q.dtype == torch.int8 and value.axis == 0 and not bool(value.zero.any())
        if quantized and plain:
            scale = value.scale.double().reshape(-1)
            return value.q, torch.int8, scale.expand(value.q.shape[0])
        value = torch.ops.paredown.dequantize(
            value.q, value.scale, value.zero, value.axis, value.dtype
        )
    if quantized:
        raise Lacking("an integer activation times float weights")
    if isinstance(value, Grouped):
        value = value.dense()
    if not isinstance(value, torch.Tensor):
        raise Lacking("weights computed by the model")
    if str(value.dtype).removeprefix("torch.") != kind or kind not in FLOATS:
        raise Lacking(f"no kernel multiplies in {kind}")
    return value.detach().double(), value.dtype, None


def _bias(b: Builder, node: Any) -> torch.Tensor | None:
    if node is None:
        return None
    value = b.env[node]
    if not isinstance(value, torch.Tensor):
        raise Lacking("a bias computed by the model")
    return value.detach().double()


def _add(
    b: Builder,
    op: str,
    tensors: dict[str, Tensor],
    out: str,
    product: Product,
    in_scale: torch.Tensor | None,
    **fields: Any,
) -> Tensor:
    if in_scale is not None and product.scale is not None:
        product.scale = product.scale * in_scale.double()
    step = b.emit(op, tensors, out, out_type=tensors[out].dtype, **fields)
    product.out = out
    b.products[id(step)] = product
    return tensors[out]


@rule("aten.conv2d.default", "aten.convolution.default", "aten.conv2d.padding")
def conv2d(b: Builder, node: torch.fx.Node) -> Tensor:
    """A convolution over NHWC; depthwise and 1 x 1 have operators of their own."""
    if argument(node, 6, "transposed", False) and "convolution" in str(node.target):
        raise Lacking("transposed convolution")
    x, in_scale = _operand(b, node.args[0])
    if len(x.shape) != 4:
        raise Lacking(f"convolution over {len(x.shape) - 2} dimensions")
    kind = dtype_of(node)
    w, dtype, scale = _weight(b, node.args[1], in_scale is not None, kind)
    bias = _bias(b, argument(node, 2, "bias"))
    stride = pair(argument(node, 3, "stride", 1))
    padding = argument(node, 4, "padding", 0)
    dilation = pair(argument(node, 5, "dilation", 1))
    general = "convolution" in str(node.target)
    groups = argument(node, 8 if general else 6, "groups", 1)
    n, _c, h, width = x.shape
    cout, _, kh, kw = w.shape
    if isinstance(padding, str):
        if padding == "same" and stride == (1, 1):
            top, left = dilation[0] * (kh - 1) // 2, dilation[1] * (kw - 1) // 2
        elif padding == "valid":
            top = left = 0
        else:
            raise Lacking(f"padding {padding!r} with a stride")
    else:
        top, left = pair(padding)
    _, above, before = padded.unpadded(b, node.args[0])
    top, left = top + above, left + before
    x = nhwc(b, x, dtype_of_input(x, kind))
    at = views.pixels(x)
    assert at is not None
    _, _, oh, ow = result(node).shape
    out = b.new((n, cout, oh, ow), kind, views.channels_last((n, cout, oh, ow)))
    depthwise = groups == x.shape[1] == cout and groups > 1
    product = Product("depthwise" if depthwise else "dense", w, dtype, groups, bias, scale)
    same = (oh, ow) == (h, width) and stride == (1, 1)
    plain = (kh, kw) == (1, 1) and same and (top, left) == (0, 0) and groups == 1
    if plain and x.dtype == str(dtype).removeprefix("torch.").replace("int8", "uint8"):
        return _gemm(b, x, at, out, cout, product, in_scale)
    fields = {
        "in_stride": at.stride,
        "in_type": x.dtype,
        "weight_type": str(dtype).removeprefix("torch."),
        "n": n,
        "h": h,
        "width": width,
        "c": x.shape[1],
        "out_h": oh,
        "out_w": ow,
        "out_c": cout,
        "kh": kh,
        "kw": kw,
        "stride_h": stride[0],
        "stride_w": stride[1],
        "pad_top": top,
        "pad_left": left,
        "dilation_h": dilation[0],
        "dilation_w": dilation[1],
        "groups": groups,
        "out_stride": cout,
    }
    if in_scale is not None:
        fields["in_zero"] = x.zero
    op = "depthwise" if depthwise else "conv"
    return _add(b, op, {"in": x, "out": out}, "out", product, in_scale, **fields)


def dtype_of_input(x: Tensor, kind: str) -> str:
    """What a product over ``x`` computing in ``kind`` reads: floats of that kind, else integers."""
    return x.dtype if x.dtype in ("uint8", "int8") else kind


def nhwc(b: Builder, x: Tensor, dtype: str | None = None) -> Tensor:
    """``x`` laid out as pixels of channels (in ``dtype``), copied only where it is not."""
    if views.pixels(x) is not None and (dtype is None or x.dtype == dtype):
        return x
    return b.copy(x, views.channels_last(x.shape), dtype)


def _gemm(
    b: Builder,
    x: Tensor,
    at: views.Rows,
    out: Tensor,
    channels: int,
    product: Product,
    in_scale: torch.Tensor | None,
) -> Tensor:
    fields: dict[str, Any] = {
        "lda": at.stride,
        "a_type": x.dtype,
        "ldc": channels,
        "m": at.rows,
        "n": channels,
        "k": at.cols,
    }
    if in_scale is not None:
        fields["a_zero"] = x.zero
    return _add(b, "gemm", {"a": x, "c": out}, "c", product, in_scale, **fields)


def _matvec(
    b: Builder,
    node: torch.fx.Node,
    x: Tensor,
    at: views.Rows,
    codes: Grouped,
    bias: torch.Tensor | None,
) -> Tensor:
    """Few rows times packed weights, which are read as they are: the product waits for memory."""
    rows, groups = codes.scale.shape
    out = b.new(tuple(result(node).shape), dtype_of(node))
    weight = codes.scale.double()
    product = Product("matvec", weight, codes.dtype, 1, bias, codes=codes)
    fields = {
        "ldx": at.stride,
        "x_type": x.dtype,
        "bits": codes.bits,
        "group": codes.columns // groups,
        "m": at.rows,
        "n": rows,
        "k": codes.columns,
        "ldy": rows,
    }
    return _add(b, "matvec", {"x": x, "y": out}, "y", product, None, **fields)


@rule("aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.matmul.default")
def linear(b: Builder, node: torch.fx.Node) -> Tensor:
    """A product of rows with a constant matrix."""
    name = str(node.target)
    bias_at = 2 if "linear" in name else None
    operands: tuple[Any, ...] = node.args
    first, second = operands[:2]
    bias: Any = argument(node, 2, "bias") if bias_at is not None else None
    if "addmm" in name:
        bias, first, second = operands[:3]
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
            raise Lacking("addmm with alpha or beta")
    x, in_scale = _operand(b, first)
    kind = dtype_of(node)
    held = b.env[second]
    if isinstance(held, Grouped) and "linear" in name and x.dtype == kind and kind in FLOATS:
        at = views.rows(x)
        if at is not None and at.rows <= FEW_ROWS:
            return _matvec(b, node, x, at, held, _bias(b, bias))
    w, dtype, scale = _weight(b, second, in_scale is not None, kind)
    if w.ndim != 2:
        raise Lacking("a product with more than one constant matrix")
    if "linear" not in name:
        if scale is not None:
            raise Lacking("an integer matrix that is not transposed")
        w = w.t()
    given = _bias(b, bias)
    if given is not None and given.shape != (w.shape[0],):
        raise Lacking("a bias that is no vector")
    if x.dtype not in ("uint8", kind):
        raise Lacking(f"{x.dtype} rows with {kind} weights")
    at = views.rows(x)
    if at is None:
        x = b.copy(x, views.contiguous(x.shape))
        at = views.rows(x)
        assert at is not None
    shape = tuple(result(node).shape)
    out = b.new(shape, kind)
    product = Product("dense", w, dtype, 1, given, scale)
    return _gemm(b, x, at, out, w.shape[0], product, in_scale)


@rule("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default")
def batch_norm(b: Builder, node: torch.fx.Node) -> Tensor:
    """Folded into the convolution before it (exact), else a multiply-add per channel."""
    if argument(node, 5, "training", False) and "legit" not in str(node.target):
        raise Lacking("batch normalisation with statistics of the batch")
    eps = argument(node, 6 if "legit" in str(node.target) else 7, "eps", 1e-5)
    given: tuple[Any, ...] = node.args[1:5]
    gamma, beta, mean, var = (None if a is None else b.env[a] for a in given)
    if not isinstance(mean, torch.Tensor) or not isinstance(var, torch.Tensor):
        raise Lacking("batch normalisation without running statistics")
    scale = 1 / (var.double() + eps).sqrt()
    if gamma is not None:
        scale = gamma.double() * scale
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    found = b.product_of(node.args[0])
    if found is not None and _open(found[0]) and _channelled(b, node.args[0], found[1], scale):
        step, p = found
        fold(p, scale, shift)
        step.fused.append(node.name)
        return b.env[node.args[0]]  # type: ignore[index]
    return affine(b, b.tensor(node.args[0]), scale, shift, dtype_of(node))


def _channelled(b: Builder, node: Any, p: Product, scale: torch.Tensor) -> bool:
    value = b.env[node]
    return value.shape[1] == p.channels == scale.numel() and value.strides[1] == 1


def affine(b: Builder, x: Tensor, scale: torch.Tensor, shift: torch.Tensor, kind: str) -> Tensor:
    """``x * scale + shift`` per channel: a depthwise convolution of one pixel, open for fusing."""
    if kind not in FLOATS or len(x.shape) != 4:
        raise Lacking(f"a multiply-add per channel of {len(x.shape)} dimensions in {kind}")
    x = nhwc(b, x, kind)
    at = views.pixels(x)
    assert at is not None
    n, c, h, width = x.shape
    out = b.new(x.shape, kind, views.channels_last(x.shape))
    # A float32 weight: the statistics' own precision, whatever the activations are.
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    one = torch.ones(c, 1, 1, 1, dtype=torch.float64)
    product = Product("depthwise", one, dtype, c, shift, scale)
    fields = {
        "in_stride": at.stride,
        "in_type": x.dtype,
        "weight_type": str(dtype).removeprefix("torch."),
        "n": n,
        "h": h,
        "width": width,
        "c": c,
        "out_h": h,
        "out_w": width,
        "out_c": c,
        "groups": c,
        "out_stride": c,
    }
    return _add(b, "depthwise", {"in": x, "out": out}, "out", product, None, **fields)


def _open(step: Step) -> bool:
    """Nothing was fused after the multiplication yet."""
    quantized = step.fields["out_type"] not in FLOATS
    return (
        step.fields.get("act", "none") == "none"
        and "residual" not in step.tensors
        and not quantized
    )


def fold(p: Product, scale: torch.Tensor, shift: torch.Tensor | None) -> None:
    """``scale * v + shift`` per output channel becomes part of the product, in double precision."""
    if p.scale is not None:
        p.scale = p.scale * scale
    else:
        p.weight = p.weight * scale.reshape(-1, *[1] * (p.weight.ndim - 1))
    if p.bias is not None:
        p.bias = p.bias * scale
    if shift is not None:
        p.bias = shift if p.bias is None else p.bias + shift


def scaled(b: Builder, node: torch.fx.Node, other: torch.Tensor) -> Tensor | None:
    """A product times a constant per output channel (a layer scale), folded into its weights."""
    found = b.product_of(node)
    if found is None or not _open(found[0]):
        return None
    value = b.env[node]
    # The channel must be what the constant runs over in the view that is multiplied.
    channel = [i for i, s in enumerate(value.strides) if s == 1 and value.shape[i] > 1]
    shape = [1] * (len(value.shape) - other.ndim) + list(other.shape)
    if (
        len(channel) != 1
        or shape[channel[0]] != found[1].channels
        or other.numel() != found[1].channels
    ):
        return None
    fold(found[1], other.double().reshape(-1), None)
    return value


def activated(b: Builder, node: torch.fx.Node, act: str) -> Tensor | None:
    """The activation as part of the product whose result ``node`` is, where it can be."""
    found = b.product_of(node)
    if found is None:
        return None
    step, _ = found
    if step.fields.get("act", "none") != "none" or step.fields["out_type"] not in FLOATS:
        return None
    if step.fields.get("residual_after"):
        return None
    step.fields["act"] = act
    return b.env[node]


def plus(b: Builder, node: torch.fx.Node, other: Tensor) -> Tensor | None:
    """``other`` as the residual of the product whose result ``node`` is, where it can be."""
    found = b.product_of(node)
    if found is None:
        return None
    step, p = found
    value = b.env[node]
    out = step.tensors[p.out]
    if "residual" in step.tensors or out.dtype not in FLOATS or other.dtype not in FLOATS:
        return None
    if other.shape != value.shape or out.dtype != value.dtype:
        return None
    at = _like_rows(other, value)
    before = b.made.get(other.buffer)
    if at is None or (before is not None and b.steps.index(before) > b.steps.index(step)):
        return None
    step.tensors["residual"] = other
    step.fields |= {"residual_stride": at, "residual_type": other.dtype}
    if step.fields.get("act", "none") != "none":
        step.fields["residual_after"] = True
    return value


def _like_rows(t: Tensor, out: Tensor) -> int | None:
    """The row stride of ``t`` where its elements stand in rows as those of ``out``."""
    by = views.order(out)
    n = out.shape[by[-1]]
    if t.strides[by[-1]] != 1 and n > 1:
        return None
    if out.strides[by[-1]] != 1 and n > 1:
        return None
    flat = views.nested([t.shape[i] for i in by[:-1]], [t.strides[i] for i in by[:-1]])
    if flat is None:
        return None
    return flat[1] if flat[0] > 1 else n


def quantized(b: Builder, node: torch.fx.Node, scale: float, zero: int) -> Tensor | None:
    """Let the product before a quantizer write integers itself, where nobody else reads it."""
    found = b.product_of(node)
    if found is None or found[0].fields["out_type"] not in FLOATS:
        return None
    step, p = found
    value = b.env[node]
    fresh = b.retype(step, p, "uint8", scale=scale, zero=zero)
    step.fields |= {"out_scale": scale, "out_zero": zero}
    return replace(fresh, shape=value.shape, strides=value.strides, offset=value.offset)
