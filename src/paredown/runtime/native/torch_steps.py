"""Steps that torch runs inside a plan, kept as an operator's name and its arguments."""

from __future__ import annotations

from typing import Any

import torch

from paredown.errors import LoweringError
from paredown.runtime.backend import COMPUTE
from paredown.runtime.export import MATMULS
from paredown.runtime.native import views
from paredown.runtime.native.builder import Builder, Value
from paredown.runtime.native.layouts import Lacking
from paredown.runtime.native.plan import Step, Tensor


def by_torch(b: Builder, target: Any, args: Any, kwargs: Any, fake: Any, why: str) -> Value:
    """Append a call of a torch operator; ``fake`` has the shapes and dtypes of its results.

    Raises ``LoweringError`` for arguments or results that a plan cannot keep.
    """
    tensors: dict[str, Tensor] = {}
    constants: dict[str, str] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[f"in{len(tensors)}"] = value
            return {"tensor": f"in{len(tensors) - 1}"}
        if isinstance(value, torch.Tensor):
            name = f"k{len(constants)}"
            constants[name] = b.constant(value)
            return {"constant": name}
        if isinstance(value, (list, tuple)):
            return [encode(v) for v in value]
        return _plain(value, target)

    call = {"args": encode(list(args)), "kwargs": {k: encode(v) for k, v in kwargs.items()}}
    many = isinstance(fake, (tuple, list))
    given = [v for v in (fake if many else [fake]) if v is not None]
    like = next(iter(tensors.values()), None)
    outs: list[Tensor] = []
    for value in given:
        kind = str(value.dtype).removeprefix("torch.")
        try:
            outs.append(b.new(tuple(value.shape), kind, _strides(like, tuple(value.shape))))
        except Lacking as e:
            raise LoweringError(f"native: {target}: {e}") from None
    writes = {f"out{i}": t for i, t in enumerate(outs)}
    step = Step(
        "torch",
        b.site,
        tensors | writes,
        tuple(writes),
        constants,
        {"target": str(target), **call},
        [b.name],
        outs[0].dtype if outs else "",
        COMPUTE if str(target) in MATMULS else "",
        fallback=why,
    )
    b.steps.append(step)
    for out in outs:
        b.made[out.buffer] = step
    return list(outs) if many else outs[0] if outs else None


def _plain(value: Any, target: Any) -> Any:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, (torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise LoweringError(f"native: {target}: cannot keep an argument of {type(value).__name__}")


def _strides(like: Tensor | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if like is not None and len(like.shape) == 4 == len(shape) and views.pixels(like) is not None:
        return views.channels_last(shape)
    return views.contiguous(shape)
