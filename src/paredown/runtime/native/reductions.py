"""Pooling, means, norms, softmax and attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from paredown.runtime.backend import COMPUTE
from paredown.runtime.native import padded, views
from paredown.runtime.native.builder import FLOATS, Builder, Lacking
from paredown.runtime.native.plan import Tensor
from paredown.runtime.native.products import nhwc
from paredown.runtime.native.rules import argument, dtype_of, pair, result, rule
from paredown.runtime.native.torch_steps import by_torch


@rule("aten.max_pool2d.default", "aten.avg_pool2d.default")
def pool(b: Builder, node: torch.fx.Node) -> Tensor:
    """Maximum or average over windows."""
    average = "avg" in str(node.target)
    kernel = pair(node.args[1])
    stride = pair(argument(node, 2, "stride") or kernel)
    padding = pair(argument(node, 3, "padding", 0))
    dilation = (1, 1) if average else pair(argument(node, 4, "dilation", 1))
    ceil = argument(node, 4 if average else 5, "ceil_mode", False)
    count = bool(argument(node, 5, "count_include_pad", True)) if average else False
    if average and argument(node, 6, "divisor_override") is not None:
        raise Lacking("average pooling with a divisor of its own")
    if average and ceil and (count or any(padding)):
        raise Lacking("average pooling that rounds its size up over padding")
    return _pool(b, node, "average" if average else "max", kernel, stride, padding, dilation, count)


def _pool(
    b: Builder,
    node: torch.fx.Node,
    kind: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    count: bool = False,
) -> Tensor:
    read: Any = node.args[0]
    source, above, before = padded.unpadded(b, read)
    x = b.tensor(read if source is b.env[read] else source)
    if len(x.shape) != 4 or x.dtype not in FLOATS:
        raise Lacking(f"pooling over {list(x.shape)} {x.dtype}")
    x = nhwc(b, x)
    at = views.pixels(x)
    assert at is not None
    n, c, h, width = x.shape
    shape = tuple(result(node).shape)
    out = b.new(shape, x.dtype, views.channels_last(shape))
    b.emit(
        "pool",
        {"in": x, "out": out},
        "out",
        kind=kind,
        count_padding=count,
        in_stride=at.stride,
        in_type=x.dtype,
        n=n,
        h=h,
        width=width,
        c=c,
        out_h=shape[2],
        out_w=shape[3],
        out_c=c,
        kh=kernel[0],
        kw=kernel[1],
        stride_h=stride[0],
        stride_w=stride[1],
        pad_top=padding[0] + above,
        pad_left=padding[1] + before,
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        groups=c,
        out_stride=c,
        out_type=out.dtype,
    )
    return out


@rule("aten.adaptive_avg_pool2d.default")
def adaptive_pool(b: Builder, node: torch.fx.Node) -> Tensor:
    """The mean of each image, or an average over equal windows."""
    x = b.tensor(node.args[0])
    oh, ow = tuple(result(node).shape)[-2:]
    if len(x.shape) != 4:
        raise Lacking("adaptive pooling without a batch")
    h, width = x.shape[2:]
    if (oh, ow) == (1, 1):
        x = nhwc(b, x)
        made = _means(b, x, (x.shape[0], x.shape[1]), h * width)
        return replace(made, shape=(*made.shape, 1, 1), strides=(*made.strides, 1, 1))
    if h % oh or width % ow:
        raise Lacking("adaptive pooling over windows of different sizes")
    window = (h // oh, width // ow)
    return _pool(b, node, "average", window, window, (0, 0))


@rule("aten.mean.dim")
def mean(b: Builder, node: torch.fx.Node) -> Tensor:
    """The mean over pixels of an image or over tokens."""
    x = b.tensor(node.args[0])
    dims = sorted(d % len(x.shape) for d in node.args[1])  # type: ignore[union-attr]
    keep = bool(argument(node, 2, "keepdim", False))
    if len(x.shape) == 4 and dims == [2, 3]:
        x = nhwc(b, x)
        channel, count = 1, x.shape[2] * x.shape[3]
    elif len(x.shape) == 4 and dims == [1, 2]:
        x = replace(x, shape=_to_planes(x.shape), strides=_to_planes(x.strides))
        x = nhwc(b, x)
        channel, count = 3, x.shape[2] * x.shape[3]
    elif len(x.shape) == 3 and dims == [1]:
        x = replace(x, shape=(*_to_planes(x.shape), 1), strides=(*_to_planes(x.strides), 1))
        x = nhwc(b, x)
        channel, count = 2, x.shape[2]
    else:
        raise Lacking(f"a mean over dimensions {dims} of {len(x.shape)}")
    made = _means(b, x, (x.shape[0], x.shape[1]), count)
    if keep:
        ndim = len(result(node).shape)
        shape, strides = [1] * ndim, [1] * ndim
        shape[0], shape[channel] = made.shape
        strides[0], strides[channel] = made.strides
        made = replace(made, shape=tuple(shape), strides=tuple(strides))
    return made


def _to_planes(values: tuple[int, ...]) -> tuple[int, ...]:
    n, *rest, c = values
    return (n, c, *rest)


def _means(b: Builder, x: Tensor, shape: tuple[int, int], count: int) -> Tensor:
    if x.dtype not in FLOATS:
        raise Lacking(f"a mean of {x.dtype}")
    at = views.pixels(x)
    assert at is not None
    out = b.new(shape, x.dtype)
    b.emit(
        "global_pool",
        {"in": x, "out": out},
        "out",
        in_type=x.dtype,
        n=shape[0],
        pixels=count,
        c=shape[1],
        in_stride=at.stride,
        out_stride=shape[1],
        out_type=out.dtype,
    )
    return out


@rule("aten.layer_norm.default", "aten.rms_norm.default")
def norm(b: Builder, node: torch.fx.Node) -> Tensor:
    """Layer or RMS norm over the last dimensions."""
    rms = "rms" in str(node.target)
    x = b.tensor(node.args[0])
    last = len(node.args[1])  # type: ignore[arg-type]
    if x.dtype not in FLOATS:
        raise Lacking(f"a norm of {x.dtype}")
    parts = [argument(node, 2, "weight"), None if rms else argument(node, 3, "bias")]
    eps = argument(node, 3 if rms else 4, "eps", None if rms else 1e-5)
    if eps is None:
        eps = torch.finfo(result(node).dtype).eps
    values = [None if p is None else b.env[p] for p in parts]
    if any(v is not None and not isinstance(v, torch.Tensor) for v in values):
        raise Lacking("a norm with a scale computed by the model")
    if views.rows(x, last) is None:
        x = b.copy(x, views.contiguous(x.shape))
    at = views.rows(x, last)
    assert at is not None
    out = b.new(x.shape, dtype_of(node))
    step = b.emit(
        "norm",
        {"in": x, "out": out},
        "out",
        in_stride=at.stride,
        in_type=x.dtype,
        rows=at.rows,
        cols=at.cols,
        eps=eps,
        rms=int(rms),
        out_stride=at.cols,
        out_type=out.dtype,
    )
    for name, value in zip(("gamma", "beta"), values, strict=True):
        if value is not None:
            step.constants[name] = b.constant(value.float().reshape(-1))
    return out


def normed(b: Builder, node: Any, scale: float, zero: int) -> Tensor | None:
    """Let the norm before a quantizer write integers itself, where nobody else reads its result."""
    value = b.env.get(node)
    if not isinstance(value, Tensor) or value.buffer in b.shared:
        return None
    step = b.made.get(value.buffer)
    if step is None or step.op != "norm" or step.tensors["out"].numel != value.numel:
        return None
    old = step.tensors["out"]
    fresh = replace(b.new(old.shape, "uint8", old.strides), scale=scale, zero=zero)
    b.drop(old.buffer)
    b.made[fresh.buffer] = step
    step.tensors["out"] = fresh
    step.fields |= {"out_type": "uint8", "out_scale": scale, "out_zero": zero}
    return replace(fresh, shape=value.shape, strides=value.strides, offset=value.offset)


@rule("aten.softmax.int", "aten._softmax.default")
def softmax(b: Builder, node: torch.fx.Node) -> Tensor:
    """Softmax over the last dimension."""
    x = b.tensor(node.args[0])
    if int(node.args[1]) % len(x.shape) != len(x.shape) - 1 or x.dtype not in FLOATS:  # type: ignore[call-overload]
        raise Lacking("softmax over another dimension than the last")
    if views.rows(x) is None:
        x = b.copy(x, views.contiguous(x.shape))
    at = views.rows(x)
    assert at is not None
    out = b.new(x.shape, dtype_of(node))
    b.emit(
        "softmax",
        {"in": x, "out": out},
        "out",
        in_stride=at.stride,
        in_type=x.dtype,
        rows=at.rows,
        cols=at.cols,
        out_stride=at.cols,
        out_type=out.dtype,
    )
    return out


@rule("aten.scaled_dot_product_attention.default")
def attention(b: Builder, node: torch.fx.Node) -> Tensor:
    """Attention without its scores in memory; heads stay where the projection left them."""
    q, k, v = (b.tensor(a) for a in node.args[:3])
    mask: Any = argument(node, 3, "attn_mask")
    causal = bool(argument(node, 5, "is_causal", False))
    if argument(node, 4, "dropout_p", 0.0):
        raise Lacking("attention with dropout")
    if len(q.shape) != 4 or any(t.dtype not in FLOATS or t.dtype != q.dtype for t in (q, k, v)):
        raise Lacking("attention over other than four dimensions of one float type")
    if q.shape[-1] != v.shape[-1]:
        raise Lacking("attention whose values have another width than its keys")
    if k.shape[:1] != q.shape[:1] or k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        raise Lacking("attention that broadcasts its operands")
    scale = node.kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)  # type: ignore[arg-type]
    q, k, v = (t if t.strides[-1] == 1 else b.copy(t, views.contiguous(t.shape)) for t in (q, k, v))
    batch, heads, length, dim = q.shape
    # The heads of a token side by side: what the output projection reads.
    strides = (length * heads * dim, dim, heads * dim, 1)
    out = b.new(q.shape, q.dtype, strides)
    tensors = {"q": q, "k": k, "v": v, "out": out}
    fields: dict[str, Any] = {
        "type": q.dtype,
        "batch": batch,
        "heads": heads,
        "kv_heads": k.shape[1],
        "q_len": length,
        "kv_len": k.shape[2],
        "dim": dim,
        "scale": scale,
        "causal": int(causal),
    }
    for name, t in (("q", q), ("k", k), ("v", v), ("out", out)):
        for part, stride in zip(("batch", "head", "row"), t.strides, strict=False):
            fields[f"{name}_{part}"] = stride
    if mask is not None:
        tensors["mask"], more = _mask(b, mask, (batch, heads, length, k.shape[2]))
        fields |= more
    if causal and length != k.shape[2]:
        raise Lacking("causal attention of different lengths")
    step = b.emit("attention", tensors, "out", **fields)
    step.role = COMPUTE
    return out


def _mask(b: Builder, node: Any, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, int]]:
    value = b.env[node]
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            value = torch.zeros(value.shape).masked_fill(~value, -math.inf)
        value = b.placed(value.float())
    t = b.tensor(value)
    if t.dtype == "bool":
        # Computed by the model: 0 where it lets through, else minus infinity.
        fake = torch.empty(t.shape, dtype=torch.float32, device="meta")
        options = (t, torch.zeros(()), torch.tensor(-math.inf))
        why = "a mask of truth values"
        key = (t.buffer, t.offset, t.shape, t.strides, why)
        if key not in b.copies:
            b.copies[key] = by_torch(b, torch.ops.aten.where.self, options, {}, fake, why)
        t = b.copies[key]
    if t.dtype != "float32" or t.strides[-1] != 1 or t.shape[-1] != shape[-1]:
        raise Lacking(f"an attention mask of {t.dtype}")
    strides = [0] * (4 - len(t.shape)) + list(t.strides)
    sizes = [1] * (4 - len(t.shape)) + list(t.shape)
    out = [0 if n == 1 else s for n, s in zip(sizes, strides, strict=True)]
    return t, {"mask_batch": out[0], "mask_head": out[1], "mask_row": out[2]}
