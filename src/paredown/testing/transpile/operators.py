"""The kernel bench's tasks as operators of the loop language: 36 of its 46.

Weights become inputs after the task's own. Not written: scans, gathers, labels, results that are
no floats (``greater``, ``argmax``), and the two whole networks with convolutions or attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from torch import Tensor as TorchTensor
from torch import nn

from paredown.errors import InputError
from paredown.kernels.loops import library as lib
from paredown.kernels.loops.compute import Builder, Operator, Tensor
from paredown.kernels.loops.expr import Const, Expr, Select, call
from paredown.testing.bench.task import Task, tasks


@dataclass
class Written:
    """An operator and the arrays of its last inputs, the weights."""

    op: Operator
    weights: list[Any]


class _Maker:
    """A builder that turns a module's weights into inputs."""

    def __init__(self, task: Task) -> None:
        self.b = Builder(task.name)
        self.module: Any = task.reference()
        self.inputs = [
            self.b.input(f"x{n}", *t.shape) for n, t in enumerate(task.inputs(1)[0])
        ]  # fmt: skip
        self.weights: list[Any] = []

    def weight(self, value: TorchTensor) -> Tensor:
        """A weight as an input."""
        array = np.array(value.detach().numpy(), np.float32, order="C")
        self.weights.append(array)
        return self.b.input(f"w{len(self.weights) - 1}", *array.shape)

    def linear(self, m: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer with a bias."""
        return lib.dense(self.b, x, self.weight(m.weight), self.weight(m.bias))

    def conv(self, m: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution with a bias."""
        if m.bias is None:
            raise InputError("a convolution without a bias is not written")
        y = lib.conv2d(
            self.b, x, self.weight(m.weight), stride=m.stride[0], padding=int(m.padding[0]),
            dilation=m.dilation[0], groups=m.groups,
        )  # fmt: skip
        return self.channels(y, self.weight(m.bias), lambda v, c: v + c)

    def channels(self, x: Tensor, w: Tensor, value: Callable[[Expr, Expr], Expr]) -> Tensor:
        """``value`` of every element and its channel's weight."""
        return self.b.each(x.shape, lambda n, c, i, j: value(x[n, c, i, j], w[c]))

    def batch_norm(self, m: Any, x: Tensor) -> Tensor:
        """With the statistics kept, as one factor and one term of each channel."""
        factor = m.weight / (m.running_var + m.eps).sqrt()
        y = self.channels(x, self.weight(factor), lambda v, c: v * c)
        shift = self.weight(m.bias - m.running_mean * factor)
        return self.channels(y, shift, lambda v, c: v + c)


Make = Callable[[_Maker, list[Tensor]], Any]


def _each(value: Callable[..., Expr]) -> Make:
    return lambda m, x: lib.each(m.b, value, *x)


def _adam(m: _Maker, x: list[Tensor]) -> Any:
    from paredown.testing.bench.tasks_tensors import BETA1, BETA2, EPS, RATE

    w, g, first, second = x
    mean = lib.each(m.b, lambda a, d: BETA1 * a + (1 - BETA1) * d, first, g)
    square = lib.each(m.b, lambda a, d: BETA2 * a + (1 - BETA2) * d * d, second, g)
    new = lib.each(
        m.b, lambda a, p, q: a - RATE * p / (call("sqrt", q) + EPS), w, mean, square
    )  # fmt: skip
    return new, mean, square


def _sgd(m: _Maker, x: list[Tensor]) -> Any:
    from paredown.testing.bench.tasks_tensors import BETA1, RATE

    momentum = lib.each(m.b, lambda a, g: BETA1 * a + g, x[2], x[1])
    return lib.each(m.b, lambda w, a: w - RATE * a, x[0], momentum), momentum


def _mean_squares(m: _Maker, x: list[Tensor]) -> Tensor:
    a, c = x
    rows, columns = a.shape

    def value(i: Expr, j: Expr) -> Expr:
        return (a[i, j] - c[i, j]) * (a[i, j] - c[i, j])

    return m.b.over((), (rows, columns), value, "sum", lambda e: e * (1 / (rows * columns)))


def _nearest(m: _Maker, x: list[Tensor]) -> Tensor:
    n, c, height, width = x[0].shape
    return m.b.each((n, c, 60, 54), lambda b, k, i, j: x[0][
        b, k, i * height // 60, j * width // 54])  # fmt: skip


def _columns(m: _Maker, x: list[Tensor]) -> Tensor:
    rows, columns = x[0].shape
    return m.b.over((columns,), (rows,), lambda j, i: x[0][i, j], "max")


def _layer_norm(m: _Maker, x: list[Tensor]) -> Tensor:
    w, c = m.weight(m.module.weight), m.weight(m.module.bias)
    return lib.normalized(m.b, x[0], 1, m.module.eps, lambda v, *a: v * w[a[-1]] + c[a[-1]])


def _rms_norm(m: _Maker, x: list[Tensor]) -> Tensor:
    w, t = m.weight(m.module.weight), x[0]
    size, eps = t.shape[-1], m.module.eps or float(np.finfo(np.float32).eps)
    total = lib.reduced(m.b, t, 1, lambda e: e * e, finish=lambda e: e * (1 / size))
    return m.b.each(
        t.shape,
        lambda i, j, k: t[i, j, k] / call("sqrt", total[i, j] + eps) * w[k],
    )


def _group_norm(m: _Maker, x: list[Tensor]) -> Tensor:
    w, c, t = m.weight(m.module.weight), m.weight(m.module.bias), x[0]
    n, channels, height, width = t.shape
    per = channels // m.module.num_groups
    folded = m.b.each((n, m.module.num_groups, per, height, width),
                      lambda b, g, k, i, j: t[b, g * per + k, i, j])  # fmt: skip
    out = lib.normalized(m.b, folded, 3, m.module.eps,
                         lambda v, b, g, k, i, j: v * w[g * per + k] + c[g * per + k])  # fmt: skip
    return m.b.each(t.shape, lambda b, k, i, j: out[b, k // per, k % per, i, j])


def _attention(m: _Maker, x: list[Tensor]) -> Tensor:
    q, k, v = x
    images, heads, tokens, width = q.shape

    scores = m.b.over(
        (images, heads, tokens, tokens), (width,),
        lambda b, h, i, j, d: q[b, h, i, d] * k[b, h, j, d],
        "sum", lambda e: e * (1 / sqrt(width)),
    )  # fmt: skip
    if m.module.causal:
        whole = scores
        scores = m.b.each(
            whole.shape,
            lambda b, h, i, j: Select(j <= i, whole[b, h, i, j], Const(-1.0e30)),
        )
    return lib.matmul(m.b, lib.softmax(m.b, scores), v)


def _gated(m: _Maker, x: list[Tensor]) -> Tensor:
    gate, up = m.linear(m.module.gate, x[0]), m.linear(m.module.up, x[0])
    inner = lib.each(m.b, lambda g, u: lib.silu(g) * u, gate, up)
    return lib.each(m.b, lambda a, c: a + c, m.linear(m.module.down, inner), x[0])


def _conv_pool_swish(m: _Maker, x: list[Tensor]) -> Tensor:
    y = lib.pool2d(m.b, m.conv(m.module[0], x[0]), 2, 2, 0, "max")
    return lib.each(m.b, lib.hardswish, y)


def _mlp(m: _Maker, x: list[Tensor]) -> Tensor:
    inner = lib.each(m.b, lib.relu, m.linear(m.module[0], x[0]))
    return m.linear(m.module[2], inner)


MAKERS: dict[str, Make] = {
    "relu": _each(lib.relu),
    "gelu": _each(lib.gelu),
    "hardswish": _each(lib.hardswish),
    "softmax": lambda m, x: lib.softmax(m.b, x[0]),
    "add-row": _each(lambda a, b: a + b),
    "multiply-channel": _each(lambda a, b: a * b),
    "mean-squares": _mean_squares,
    "sgd": _sgd,
    "adam": _adam,
    "max-pool": lambda m, x: lib.pool2d(m.b, x[0], 3, 2, 1, "max"),
    "average-pool": lambda m, x: lib.pool2d(m.b, x[0], 2, 2, 0, "sum"),
    "global-pool": lambda m, x: lib.mean(m.b, x[0], 2),
    "sum-rows": lambda m, x: lib.reduced(m.b, x[0], 1),
    "max-columns": _columns,
    "deviation": lambda m, x: lib.variance(m.b, x[0], 1, 1)[1],
    "nearest": _nearest,
    **{
        name: lambda m, x: m.conv(m.module, x[0])
        for name in (
            "conv-3x3", "conv-3x3-stride-2", "conv-1x1", "conv-depthwise-5x5", "conv-dilated",
        )
    },
    "linear": lambda m, x: m.linear(m.module, x[0]),
    "linear-one-row": lambda m, x: m.linear(m.module, x[0]),
    "product": lambda m, x: lib.matmul(m.b, x[0], x[1]),
    "product-batched": lambda m, x: lib.matmul(m.b, x[0], x[1]),
    "batch-norm": lambda m, x: m.batch_norm(m.module[0], x[0]),
    "group-norm": _group_norm,
    "layer-norm": _layer_norm,
    "rms-norm": _rms_norm,
    "attention": _attention,
    "attention-causal": _attention,
    "conv-norm-relu": lambda m, x: lib.each(
        m.b, lib.relu, m.batch_norm(m.module[1], m.conv(m.module[0], x[0]))
    ),
    "linear-gelu": lambda m, x: lib.each(m.b, lib.gelu, m.linear(m.module[0], x[0])),
    "gated-linear-residual": _gated,
    "conv-pool-swish": _conv_pool_swish,
    "mlp": _mlp,
}  # fmt: skip
"""Task -> its operator."""


def written() -> list[str]:
    """Names of the bench's tasks that are written as operators, in the bench's order."""
    return [t.name for t in tasks() if t.name in MAKERS]


def operator(task: Task) -> Written:
    """A task as an operator; raises ``InputError`` for one that is not written."""
    if task.name not in MAKERS:
        raise InputError(f"task {task.name} is not written as loops; there are: "
                         f"{', '.join(MAKERS)}")  # fmt: skip
    maker = _Maker(task)
    made = MAKERS[task.name](maker, maker.inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    return Written(maker.b.done(*outputs), maker.weights)
