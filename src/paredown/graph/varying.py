"""Networks whose work depends on the input: how they say so, and what a capture makes of it.

A module says it in its attribute ``varies``, one line of why. On real tensors it takes the branch
of its data; on fake ones, where there is nothing to look at, it runs every branch and states with
`expected` what share of the inputs each operator is really run for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_share: ContextVar[float] = ContextVar("paredown_share", default=1.0)


def varies(model: nn.Module | None) -> str | None:
    """Why the cost of one run depends on its input; None where it does not."""
    if model is None:
        return None
    found = (getattr(m, "varies", None) for m in model.modules())
    return next((why for why in found if isinstance(why, str)), None)


def cannot_compile(model: nn.Module, backend: str) -> str | None:
    """Why a backend that compiles one fixed program cannot run a model; None when it can."""
    why = varies(model)
    return None if why is None else f"{backend} compiles one fixed program; {why}: use eager"


def forget(model: nn.Module | None) -> None:
    """Empty what modules keep from one run to the next (a memory of results)."""
    for module in () if model is None else model.modules():
        empty = getattr(module, "forget", None)
        if callable(empty):
            empty()


def shapes_alone(*tensors: Tensor) -> bool:
    """Whether nothing can be read from tensors: they are fake, on ``meta``, or being exported."""
    fake = any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in tensors)
    return fake or torch.compiler.is_exporting()


@contextlib.contextmanager
def branching() -> Generator[None]:
    """What `expected` says inside ends with this scope."""
    token = _share.set(_share.get())
    try:
        yield
    finally:
        _share.reset(token)


def expected(share: float) -> None:
    """From here to the end of the `branching` scope runs this share of what ran before it."""
    _share.set(_share.get() * min(1.0, max(0.0, share)))


@contextlib.contextmanager
def run_for(share: float) -> Generator[None]:
    """Operators inside are run for this share of the inputs (or rows) that they are shown with."""
    with branching():
        expected(share)
        yield


def share_now() -> float:
    """The share that an operator recorded now is really run for."""
    return _share.get()
