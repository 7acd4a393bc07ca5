"""Kernels with planted bugs: what a bench must find before its verdicts are worth anything.

Each is a right kernel that leaves torch (NumPy stands for compiled code) with one fault; the paper
(arXiv:2507.17773) names the last kind, code that silently calls the framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.testing.bench.backends import Kernel
from paredown.testing.bench.task import Task


def own_kernel(task: Task, _threads: int) -> Kernel:
    """A right kernel in NumPy for three tasks; raises ``InputError`` for others."""
    module: Any = task.reference()
    makers: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
        "softmax": _softmax,
        "linear": _linear,
        "layer-norm": _layer_norm,
    }
    if task.name not in makers:
        raise InputError(f"no kernel in NumPy for {task.name}")
    compute = makers[task.name](module)
    return lambda x: torch.from_numpy(compute(x.numpy()))


def _softmax(_module: nn.Module) -> Callable[[Any], Any]:
    def compute(x: Any) -> Any:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    return compute


def _linear(module: Any) -> Callable[[Any], Any]:
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    return lambda x: x @ weight.T + bias


def _layer_norm(module: Any) -> Callable[[Any], Any]:
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()

    def compute(x: Any) -> Any:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + np.float32(module.eps)) * weight + bias

    return compute


def _after(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Task, int], Kernel]:
    """The right kernel, its result changed by ``change(result, input)``."""

    def make(task: Task, threads: int) -> Kernel:
        kernel = own_kernel(task, threads)
        return lambda x: change(kernel(x), x)

    return make


def _numpy(t: Tensor) -> Any:
    return t.numpy()


def _tail(y: Tensor, value: float) -> Tensor:
    _numpy(y).reshape(-1)[-3:] = value
    return y


def _overwrites(y: Tensor, x: Tensor) -> Tensor:
    _numpy(x)[...] = 0.0
    return y


def _stale(task: Task, threads: int) -> Kernel:
    kernel, kept = own_kernel(task, threads), list[Tensor]()

    def call(x: Tensor) -> Tensor:
        kept.append(kernel(x))
        return torch.from_numpy(_numpy(kept[0]).copy())

    return call


def _one_buffer(task: Task, threads: int) -> Kernel:
    kernel, kept = own_kernel(task, threads), list[Tensor]()

    def call(x: Tensor) -> Tensor:
        kept.append(kernel(x))
        _numpy(kept[0])[...] = _numpy(kept[-1])
        return kept[0]

    return call


def _framework(task: Task, _threads: int) -> Kernel:
    return task.reference()


MUTANTS: dict[str, Callable[[Task, int], Kernel]] = {
    "off by one": _after(lambda y, _: torch.from_numpy(np.roll(_numpy(y), 1, -1))),
    "wrong axis": _after(lambda y, _: torch.from_numpy(np.flip(_numpy(y), 0).copy())),
    "last values not written": _after(lambda y, _: _tail(y, 0.0)),
    "last values not a number": _after(lambda y, _: _tail(y, float("nan"))),
    "half the precision": _after(
        lambda y, _: torch.from_numpy(_numpy(y).astype(np.float16).astype(np.float32) * 1.001)
    ),
    "another dtype": _after(lambda y, _: torch.from_numpy(_numpy(y).astype(np.float64))),
    "another shape": _after(lambda y, _: torch.from_numpy(_numpy(y)[None])),
    "overwrites its input": _after(_overwrites),
    "first result again": _stale,
    "one buffer for all results": _one_buffer,
    "calls the framework": _framework,
}
"""Name -> a backend with that bug."""
