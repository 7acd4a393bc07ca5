"""Elementwise operators: fused into the product before them where nobody else reads it."""

from __future__ import annotations

from typing import Any

import torch

from paredown.runtime.native import moves, products, views
from paredown.runtime.native.builder import FLOATS, Builder, Dequantized, Grouped, Lacking
from paredown.runtime.native.plan import Tensor
from paredown.runtime.native.reductions import normed
from paredown.runtime.native.rules import argument, dtype_of, result, rule

ACTS = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hardswish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hardsigmoid",
    "tanh": "tanh",
    "gelu": "gelu",
}


def _act_of(node: torch.fx.Node) -> str:
    name = str(node.target).split(".")[1].rstrip("_")
    if name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        if (low, high) == (0.0, 6.0):
            return "relu6"
        raise Lacking(f"hardtanh between {low} and {high}")
    if name == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
        return "gelu_tanh"
    if name in ACTS:
        return ACTS[name]
    raise Lacking(f"no activation {name}")


@rule(
    *(f"aten.{name}{tail}.default" for name in (*ACTS, "hardtanh") for tail in ("", "_")),
)
def activation(b: Builder, node: torch.fx.Node) -> Tensor:
    """An activation: part of the product before it, else a pass of its own."""
    act = _act_of(node)
    source: Any = node.args[0]
    if (done := products.activated(b, source, act)) is not None:
        _note(b, done, node)
        return done
    x = b.tensor(source)
    return _unary(b, x, act, dtype_of(node))


def _unary(b: Builder, x: Tensor, act: str, kind: str) -> Tensor:
    if x.dtype not in FLOATS or kind not in FLOATS:
        raise Lacking(f"{act} of {x.dtype}")
    out = b.new(x.shape, kind, views.dense_like(x, x.shape))
    return b.elementwise(x, out, act=act)


def _note(b: Builder, value: Tensor, node: torch.fx.Node) -> None:
    b.made[value.buffer].fused.append(node.name)


@rule(
    "aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.mul_.Tensor"
)
def binary(b: Builder, node: torch.fx.Node) -> Tensor:
    """Sum, difference or product, broadcast; sums join the product that makes one side."""
    op = str(node.target).split(".")[1].rstrip("_")
    if argument(node, 2, "alpha", 1) != 1:
        raise Lacking(f"{op} with alpha")
    first, second = node.args[:2]
    for one, other in ((first, second), (second, first)):
        done = _fused(b, op, one, other, swapped=one is second)
        if done is not None:
            _note(b, done, node)
            return done
    shape, kind = tuple(result(node).shape), dtype_of(node)
    if kind not in FLOATS:
        raise Lacking(f"{op} in {kind}")
    if (moved := _of_moved(b, op, first, second, shape, kind)) is not None:
        return moved
    x, y = _side(b, first, kind), _side(b, second, kind)
    if x.shape != shape:
        if op == "sub" or y.shape != shape:
            raise Lacking("operands that broadcast each other")
        x, y = y, x
    out = b.new(shape, kind, views.dense_like(x, shape))
    return b.elementwise(x, out, op, y)


def _of_moved(
    b: Builder, op: str, first: Any, second: Any, shape: tuple[int, ...], kind: str
) -> Tensor | None:
    """A sum or product with rows that lie in another order, which it reads where they are."""
    for one, other in ((first, second), (second, first)):
        value = b.env.get(one) if isinstance(one, torch.fx.Node) else None
        if not isinstance(value, moves.Moved) or value.made is not None or value.shape != shape:
            continue
        if value.base.dtype not in FLOATS or (op == "sub" and one is second):
            continue
        out = b.new(shape, kind)
        moves.gather(b, value, out, op, _side(b, other, kind))
        return out
    return None


@rule("aten.pow.Tensor_Scalar")
def power(b: Builder, node: torch.fx.Node) -> Tensor:
    """A square or cube by multiplications."""
    x, kind = b.tensor(node.args[0]), dtype_of(node)
    if node.args[1] not in (2, 3) or x.dtype not in FLOATS or x.dtype != kind:
        raise Lacking(f"the power {node.args[1]} of {x.dtype}")
    like = views.dense_like(x, x.shape)
    square = b.elementwise(x, b.new(x.shape, kind, like), "mul", x)
    if node.args[1] == 2:
        return square
    return b.elementwise(square, b.new(x.shape, kind, like), "mul", x)


@rule("aten.div.Tensor", "aten.div_.Tensor")
def divided(b: Builder, node: torch.fx.Node) -> Tensor:
    """A division by constants, as a multiplication by what one over them rounds to."""
    by: Any = node.args[1]
    value = b.env.get(by) if isinstance(by, torch.fx.Node) else torch.tensor(float(by))
    shape, kind = tuple(result(node).shape), dtype_of(node)
    x = b.tensor(node.args[0])
    if not isinstance(value, torch.Tensor) or x.dtype != kind or kind not in FLOATS:
        raise Lacking("a division by what the model computes")
    if x.shape != shape:
        raise Lacking("operands that broadcast each other")
    other = b.placed((1.0 / value.double()).float())
    return b.elementwise(x, b.new(shape, kind, views.dense_like(x, shape)), "mul", other)


def _side(b: Builder, arg: Any, kind: str) -> Tensor:
    if isinstance(arg, (int, float)):
        return b.placed(torch.tensor(float(arg), dtype=torch.float32))
    t = b.tensor(arg)
    if t.dtype not in FLOATS:
        raise Lacking(f"an operand of {t.dtype} beside {kind}")
    return t


def _fused(b: Builder, op: str, one: Any, other: Any, *, swapped: bool) -> Tensor | None:
    """``one op other`` as part of the product that makes ``one``."""
    if not isinstance(one, torch.fx.Node):
        return None
    value = b.env.get(other) if isinstance(other, torch.fx.Node) else other
    if op == "mul" and isinstance(value, torch.Tensor):
        return products.scaled(b, one, value)
    if op == "add" and isinstance(value, (Tensor, Dequantized)):
        if isinstance(value, Dequantized):
            return None
        return products.plus(b, one, value)
    return None


@rule("paredown.quantize.default")
def quantize(b: Builder, node: torch.fx.Node) -> Tensor:
    """Floats to integers, by the product that makes them where it can; equal ones only once."""
    args: tuple[Any, ...] = node.args
    source, scale, zero, qmin, qmax, _axis = args
    s, z = b.env[scale], b.env[zero]
    if not isinstance(s, torch.Tensor) or not isinstance(z, torch.Tensor):
        raise Lacking("a range computed by the model")
    if s.numel() != 1 or z.numel() != 1 or (qmin, qmax) != (0, 255):
        raise Lacking("quantizing activations other than to one uint8 range")
    numbers = float(s), int(z)
    x = b.tensor(source)
    key = (x.buffer, x.offset, x.shape, x.strides, numbers)
    if key in b.copies:
        return b.copies[key]
    if (done := products.quantized(b, source, *numbers)) is not None:
        _note(b, done, node)
        return done
    if (done := normed(b, source, *numbers)) is not None:
        _note(b, done, node)
        return done
    if x.dtype not in FLOATS:
        raise Lacking(f"quantizing {x.dtype}")
    out = _integers(b, node, x, *numbers)
    b.move(x, out)
    b.copies[key] = out
    return out


def _integers(b: Builder, node: torch.fx.Node, x: Tensor, scale: float, zero: int) -> Tensor:
    """Room for the integers of ``x``."""
    fresh = b.new(x.shape, "uint8", _strides_for(node, x))
    return Tensor(fresh.buffer, fresh.dtype, fresh.shape, fresh.strides, 0, scale, zero)


IMAGES = ("conv2d", "convolution", "pool2d")


def _strides_for(node: torch.fx.Node, x: Tensor) -> tuple[int, ...]:
    """As ``x`` lies; an image in planes that a convolution reads becomes pixels on the way."""
    if len(x.shape) == 4 and views.pixels(x) is None and _feeds_image(node):
        return views.channels_last(x.shape)
    return views.dense_like(x, x.shape)


def _feeds_image(node: torch.fx.Node) -> bool:
    for user in node.users:
        name = str(user.target)
        if any(word in name for word in IMAGES):
            return True
        if ("dequantize" in name or "_to_copy" in name) and _feeds_image(user):
            return True
    return False


@rule("paredown.dequantize.default")
def dequantize(b: Builder, node: torch.fx.Node) -> Dequantized:
    """Kept as integers until somebody needs floats: products do not."""
    args: tuple[Any, ...] = node.args
    source, scale, zero, axis, dtype = args
    q, s, z = b.env[source], b.env[scale], b.env[zero]
    if not isinstance(s, torch.Tensor) or not isinstance(z, torch.Tensor):
        raise Lacking("a range computed by the model")
    if not isinstance(q, (Tensor, torch.Tensor)):
        raise Lacking("dequantizing what is no integer tensor")
    if isinstance(q, Tensor) and (q.scale, q.zero) != (float(s), int(z)):
        raise Lacking("integers read with another range than they were written with")
    return Dequantized(q, s, z, int(axis), dtype)  # type: ignore[arg-type]


@rule("paredown.dequantize_groups.default")
def dequantize_groups(b: Builder, node: torch.fx.Node) -> Grouped:
    """Kept packed until somebody needs floats: products of few rows do not."""
    args: tuple[Any, ...] = node.args
    q, scale, zero = (b.env[a] for a in args[:3])
    if not all(isinstance(t, torch.Tensor) for t in (q, scale, zero)):
        raise Lacking("packed weights computed by the model")
    return Grouped(q, scale, zero, *args[3:])


@rule("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device")
def cast(b: Builder, node: torch.fx.Node) -> Tensor:
    """Another dtype: written so by the product before it where nobody else reads that."""
    kind = dtype_of(node)
    source: Any = node.args[0]
    value = b.env[source]
    if isinstance(value, Dequantized) and kind in FLOATS:
        return Dequantized(value.q, value.scale, value.zero, value.axis, result(node).dtype)  # type: ignore[return-value]
    x = b.tensor(source)
    if x.dtype == kind:
        return x
    if x.dtype not in FLOATS or kind not in FLOATS:
        raise Lacking(f"a cast from {x.dtype} to {kind}")
    if (found := b.product_of(source)) is not None and found[0].fields["out_type"] in FLOATS:
        fresh = b.retype(*found, kind)
        _note(b, fresh, node)
        return Tensor(fresh.buffer, kind, x.shape, x.strides, x.offset)
    return b.copy(x, _strides_for(node, x), kind)
