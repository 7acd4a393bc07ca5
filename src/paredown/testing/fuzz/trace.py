"""Recording operator calls while networks run (NeuRI, arXiv:2302.02261, section 3.1)."""

# Function modes and names of overridable functions are below torch's public surface.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from paredown.testing.fuzz.call import DTYPES, Call, Spec, flat, function


class _Unwritable(Exception):
    """An argument that JSON cannot hold: the call is not recorded."""


class Recorder(TorchFunctionMode):
    """Notes every call of torch's Python interface made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function and write the call down where it can be written."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = name_of(func)
        outs = flat(out)
        if name is not None and outs is not None:
            try:
                self.calls.append(_note(name, args, kwargs, outs))
            except _Unwritable:
                return out
        return out


@contextmanager
def recorded() -> Generator[list[Call]]:
    """The calls made inside the block."""
    mode = Recorder()
    with mode:
        yield mode.calls


def name_of(func: Any) -> str | None:
    """The dotted name that leads back to a function; None for one that changes its argument."""
    name = resolve_name(func)
    if not isinstance(name, str) or not name.startswith("torch."):
        return None
    last = name.rpartition(".")[2]
    if last.endswith("_") and not last.endswith("__"):
        return None
    try:
        return name if function(name) is func else None
    except AttributeError:
        return None


def _note(name: str, args: Any, kwargs: dict[str, Any], outs: list[torch.Tensor]) -> Call:
    tensors: list[Spec] = []
    ints: list[int] = []

    def leaf(v: Any) -> Any:
        if isinstance(v, torch.Tensor):
            tensors.append(_spec(v))
            return {"t": len(tensors) - 1}
        if isinstance(v, torch.dtype):
            return {"torch": str(v)[6:]}
        if isinstance(v, bool) or v is None or isinstance(v, (str, float)):
            return v
        if isinstance(v, int):
            if v < 0:
                return v
            ints.append(v)
            return {"i": len(ints) - 1}
        if isinstance(v, (list, tuple)):
            return [leaf(x) for x in v]
        raise _Unwritable

    a, k = [leaf(v) for v in args], {key: leaf(v) for key, v in kwargs.items()}
    if not tensors:
        raise _Unwritable
    return Call(name, a, k, tuple(tensors), tuple(ints), tuple(_spec(t) for t in outs))


def _spec(t: torch.Tensor) -> Spec:
    dtype = str(t.dtype)[6:]
    if dtype not in DTYPES or t.layout != torch.strided:
        raise _Unwritable
    return Spec(tuple(t.shape), dtype)
