"""Where fake tensors would make a model run another program than the device runs.

One table of mended meta kernels, and the places where a library asks "am I being traced?" and then
builds masks that it leaves out in a real run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor

from paredown.graph.tensors import KNOWN


@contextlib.contextmanager
def as_on_the_device() -> Generator[None]:
    """Make a fake run take the branches of a real one.

    Values known to fake tensors (integer inputs) are carried through operators up to ``KNOWN``
    elements, and transformers no longer takes a fake mask for one of a compiler.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", KNOWN))
        # What a meta kernel refuses is raised and then retried; its own log lines only repeat it.
        stack.enter_context(mock.patch.object(fake_tensor.log, "disabled", True))
        flex = sys.modules.get("torch.nn.attention.flex_attention")
        if flex is not None:
            # Uncompiled, it compiles itself, which a dispatch mode forbids.
            name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
            stack.enter_context(mock.patch.object(flex, name, True))
        utils = sys.modules.get("transformers.utils.import_utils")
        if utils is not None and hasattr(utils, "is_fake_tensor"):
            stack.enter_context(mock.patch.object(utils, "is_fake_tensor", _never))
        yield


def _never(_: torch.Tensor) -> bool:
    return False


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Torch 2.13's meta kernel accepts bfloat16 alone; the CPU runs every float type."""
    dtype = out_dtype or a.dtype
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None
        return a.new_empty((offs.numel(), a.shape[0], b.shape[1]), dtype=dtype)
    if a.dim() == 3 and b.dim() == 3:
        return a.new_empty((a.shape[0], a.shape[1], b.shape[2]), dtype=dtype)
    rows = a.shape[-2] if a.dim() == 2 else a.shape[1]
    return a.new_empty((rows, b.shape[-1]), dtype=dtype)


def _channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Torch 2.13's meta kernel hands its input back for one group or one channel per group; the CPU
    copies.
    """
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _divided(a: torch.Tensor, b: Any, *, rounding_mode: str | None = None) -> torch.Tensor:
    """Torch 2.13's meta kernels lay a rounded quotient out in rows; the CPU's follow their inputs,
    as a sum's do.
    """
    return torch.true_divide(a, b) if rounding_mode is None else torch.add(a, b)


def _signed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``copysign``: a quotient's type and layout."""
    return torch.true_divide(a, b)


def _found(a: torch.Tensor, b: torch.Tensor, **_: bool) -> torch.Tensor:
    """``isin``: the CPU's result lies in rows."""
    return torch.empty_like(a, dtype=torch.bool, memory_format=torch.contiguous_format)


def _log_sigmoid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's result and buffer lie in rows."""
    rows = torch.contiguous_format
    return torch.empty_like(x, memory_format=rows), torch.empty_like(x, memory_format=rows)


_aten = torch.ops.aten
MENDED: dict[Any, Callable[..., Any]] = {
    _aten._grouped_mm.default: _grouped_mm,
    _aten.channel_shuffle.default: _channel_shuffle,
    _aten.div.Tensor_mode: _divided,
    _aten.floor_divide.default: partial(_divided, rounding_mode="floor"),
    _aten.copysign.Tensor: _signed,
    _aten.isin.Tensor_Tensor: _found,
    _aten.log_sigmoid_forward.default: _log_sigmoid,
}
"""Operator overload -> a meta kernel that agrees with the CPU."""

LIFTED: frozenset[Any] = frozenset({_aten.lift_fresh.default, _aten.lift_fresh_copy.default})
"""Operators that take a tensor made of a Python value in the run itself."""

FILLED: frozenset[Any] = frozenset(
    {
        _aten.ones.default,
        _aten.zeros.default,
        _aten.full.default,
        _aten.arange.default,
        _aten.arange.start,
        _aten.arange.start_step,
        _aten.scalar_tensor.default,
    }
)
"""Operators whose result is known from their arguments alone."""
