"""Operators as stages: elementwise functions, products, convolutions, pooling, norms, softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

from paredown.errors import InputError
from paredown.kernels.loops.compute import LOWEST, Builder, Tensor
from paredown.kernels.loops.expr import Const, Expr, Load, Number, Select, binary, call, wrap

# Functions of one element.


def maximum(a: Expr, b: Expr | Number) -> Expr:
    """The larger of two."""
    return binary("max", a, wrap(b))


def minimum(a: Expr, b: Expr | Number) -> Expr:
    """The smaller of two."""
    return binary("min", a, wrap(b))


def relu(x: Expr) -> Expr:
    """``max(x, 0)``."""
    return maximum(x, 0.0)


def gelu(x: Expr) -> Expr:
    """Exact: ``x Phi(x)``."""
    return 0.5 * x * (1.0 + call("erf", x * (1 / sqrt(2))))


def sigmoid(x: Expr) -> Expr:
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + call("exp", 0.0 - x))


def silu(x: Expr) -> Expr:
    """``x sigmoid(x)``."""
    return x * sigmoid(x)


def hardswish(x: Expr) -> Expr:
    """``x clamp(x + 3, 0, 6) / 6``."""
    return x * minimum(maximum(x + 3.0, 0.0), 6.0) * (1 / 6)


# Stages.


def each(b: Builder, value: Callable[..., Expr], *tensors: Tensor) -> Tensor:
    """``value`` of one element of each tensor, shapes broadcast against each other."""
    rank = max(len(t.shape) for t in tensors)
    padded = [(1,) * (rank - len(t.shape)) + t.shape for t in tensors]
    shape = tuple(max(p[n] for p in padded) for n in range(rank))
    if any(p[n] not in (1, shape[n]) for p in padded for n in range(rank)):
        raise InputError(f"shapes do not broadcast: {', '.join(str(t.shape) for t in tensors)}")

    def at(*axes: Expr) -> Expr:
        return value(*(broadcast(t, axes) for t in tensors))

    return b.each(shape, at)


def broadcast(t: Tensor, axes: Sequence[Expr]) -> Load:
    """The element of a tensor that broadcasts to a place."""
    own = axes[len(axes) - len(t.shape) :]
    return t[tuple(Const(0) if n == 1 else a for a, n in zip(own, t.shape, strict=True))]


def matmul(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    """(..., m, k) by (..., k, n), equal leading axes; raises ``InputError``."""
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2]:
        raise InputError(f"no product of {x.shape} and {y.shape}")

    def value(*axes: Expr) -> Expr:
        *lead, i, j, k = axes
        return x[(*lead, i, k)] * y[(*lead, k, j)]

    return b.over((*x.shape[:-1], y.shape[-1]), (x.shape[-1],), value)


def dense(b: Builder, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., k) by a weight (n, k), and a bias (n,) if there is one."""
    if x.shape[-1] != weight.shape[1]:
        raise InputError(f"no dense layer of {x.shape} with a weight {weight.shape}")

    def value(*axes: Expr) -> Expr:
        *lead, j, k = axes
        return x[(*lead, k)] * weight[j, k]

    out = b.over((*x.shape[:-1], weight.shape[0]), (x.shape[-1],), value)
    return out if bias is None else each(b, lambda p, q: p + q, out, bias)


def conv2d(
    b: Builder,
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """(batch, channels, height, width) with a weight (out, channels / groups, kh, kw)."""
    n, channels, height, width = x.shape
    out, per, kh, kw = weight.shape
    if per * groups != channels or out % groups:
        raise InputError(f"no convolution of {x.shape} with {weight.shape} in {groups} groups")
    rows = (height + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kw - 1) - 1) // stride + 1

    x = padded(b, x, padding, 0.0)

    def value(*axes: Expr) -> Expr:
        image, o, i, j, c, p, q = axes
        channel = c if groups == 1 else o // (out // groups) * per + c
        at = image, channel, i * stride + p * dilation, j * stride + q * dilation
        return x[at] * weight[o, c, p, q]

    return b.over((n, out, rows, columns), (per, kh, kw), value)


def padded(b: Builder, x: Tensor, padding: int, outside: float) -> Tensor:
    """An image with a frame of one value; the image itself without one."""
    if not padding:
        return x
    n, channels, height, width = x.shape

    def value(image: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        row, column = i - padding, j - padding
        within = binary(
            "&&",
            binary("&&", row >= 0, row < height),
            binary("&&", column >= 0, column < width),
        )
        return Select(within, x[image, c, row, column], Const(outside))

    return b.each((n, channels, height + 2 * padding, width + 2 * padding), value)


def pool2d(b: Builder, x: Tensor, size: int, stride: int, padding: int, combine: str) -> Tensor:
    """Largest values or, without padding, means of windows."""
    n, channels, height, width = x.shape
    if combine == "sum" and padding:
        raise InputError("means of padded windows are not written")
    rows, columns = ((d + 2 * padding - size) // stride + 1 for d in (height, width))

    x = padded(b, x, padding, LOWEST)

    def value(*axes: Expr) -> Expr:
        image, c, i, j, p, q = axes
        return x[image, c, i * stride + p, j * stride + q]

    def finish(acc: Expr) -> Expr:
        return acc * (1 / size**2) if combine == "sum" else acc

    return b.over((n, channels, rows, columns), (size, size), value, combine, finish)


def reduced(
    b: Builder,
    x: Tensor,
    count: int,
    value: Callable[[Load], Expr] = lambda e: e,
    combine: str = "sum",
    finish: Callable[[Expr], Expr] = lambda e: e,
) -> Tensor:
    """A tensor without its last ``count`` axes, which are reduced."""
    kept = len(x.shape) - count
    return b.over(
        x.shape[:kept], x.shape[kept:], lambda *axes: value(x[tuple(axes)]), combine, finish
    )


def mean(b: Builder, x: Tensor, count: int) -> Tensor:
    """Mean over the last axes."""
    size = prod(x.shape[len(x.shape) - count :])
    return reduced(b, x, count, finish=lambda e: e * (1 / size))


def softmax(b: Builder, x: Tensor) -> Tensor:
    """Over the last axis, the largest value taken off first."""
    top = reduced(b, x, 1, combine="max")
    grown = b.each(x.shape, lambda *a: call("exp", x[tuple(a)] - top[tuple(a[:-1])]))
    total = reduced(b, grown, 1)
    return b.each(x.shape, lambda *a: grown[tuple(a)] / total[tuple(a[:-1])])


def variance(b: Builder, x: Tensor, count: int, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance over the last axes, in two passes."""
    kept = len(x.shape) - count
    size = prod(x.shape[kept:])
    middle = mean(b, x, count)

    def value(*axes: Expr) -> Expr:
        off = x[tuple(axes)] - middle[tuple(axes[:kept])]
        return off * off

    def finish(e: Expr) -> Expr:
        return e * (1 / (size - correction))

    return middle, b.over(x.shape[:kept], x.shape[kept:], value, "sum", finish)


def normalized(b: Builder, x: Tensor, count: int, eps: float, scale: Callable[..., Expr]) -> Tensor:
    """Mean 0 and variance 1 over the last axes, then ``scale(value, *axes)``."""
    kept = len(x.shape) - count
    middle, spread = variance(b, x, count)

    def value(*axes: Expr) -> Expr:
        lead = tuple(axes[:kept])
        off = x[tuple(axes)] - middle[lead]
        return scale(off / call("sqrt", spread[lead] + eps), *axes)

    return b.each(x.shape, value)
