"""Tasks on tensors alone: elementwise, reductions, scans, indices, losses, optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.testing.bench.task import Draw, Function, Task, add, normal

PLANE = (64, 257)
IMAGE = (1, 24, 30, 27)
RATE, BETA1, BETA2, EPS = 1e-2, 0.9, 0.999, 1e-8


def _indexed(rows: int, columns: int, count: int) -> Draw:
    return lambda g: (
        torch.randn(rows, columns, generator=g),
        torch.randint(0, rows, (count,), generator=g),
    )


def _labelled(g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(64, 100, generator=g), torch.randint(0, 100, (64,), generator=g)


def _moments(g: torch.Generator) -> tuple[Tensor, ...]:
    weight, gradient, first = (torch.randn(96, 128, generator=g) for _ in range(3))
    return weight, gradient, first, torch.rand(96, 128, generator=g)


def _sgd(weight: Tensor, gradient: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    momentum = BETA1 * momentum + gradient
    return weight - RATE * momentum, momentum


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    return w - RATE * m / (v.sqrt() + EPS), m, v


def _resized(mode: str, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, size=size, mode=mode)


@cache
def fill() -> None:
    """Put them on the bench, once."""
    plane, image = normal(PLANE), normal(IMAGE)
    table: list[tuple[str, str, Callable[..., Any], Draw]] = [
        ("relu", "activation", F.relu, plane),
        ("gelu", "activation", F.gelu, plane),
        ("softmax", "activation", lambda x: x.softmax(-1), plane),
        ("hardswish", "activation", F.hardswish, plane),
        ("add-row", "broadcast", torch.add, normal(PLANE, (257,))),
        ("multiply-channel", "broadcast", torch.mul, normal(IMAGE, (1, 24, 1, 1))),
        ("greater", "broadcast", torch.gt, normal(PLANE, (64, 1))),
        ("gather-rows", "index", lambda x, i: x[i], _indexed(200, 64, 77)),
        ("argmax", "index", lambda x: x.argmax(-1), plane),
        ("add-at-rows", "index", lambda x, i: torch.zeros_like(x).index_add(0, i, x[: len(i)]),
         _indexed(100, 32, 61)),
        ("mean-squares", "loss", F.mse_loss, normal(PLANE, PLANE)),
        ("cross-entropy", "loss", F.cross_entropy, _labelled),
        ("cumulative-sum", "math", lambda x: x.cumsum(-1), plane),
        ("cumulative-product", "math", lambda x: (0.1 * x).exp().cumprod(-1), normal((32, 33))),
        ("sgd", "optimizer", _sgd, normal(*[(96, 128)] * 3)),
        ("adam", "optimizer", _adam, _moments),
        ("max-pool", "pooling", lambda x: F.max_pool2d(x, 3, 2, 1), image),
        ("average-pool", "pooling", lambda x: F.avg_pool2d(x, 2), image),
        ("global-pool", "pooling", lambda x: x.mean((2, 3)), image),
        ("sum-rows", "reduce", lambda x: x.sum(-1), plane),
        ("max-columns", "reduce", lambda x: x.amax(0), plane),
        ("deviation", "reduce", lambda x: x.var(-1), plane),
        ("nearest", "resize", _resized("nearest", (60, 54)), image),
        ("bilinear", "resize", _resized("bilinear", (45, 40)), image),
    ]  # fmt: skip
    for name, category, function, draw in table:
        add(Task(name, category, lambda f=function: Function(f), draw))
