"""Rows of a map in another order: windows, cyclic shifts, padding and cropping move no byte alone.

What only moves whole rows is kept as a table of rows. The step that makes them writes them in that
order where it can (a norm in front of window attention), a sum reads them so (the residual behind
it); else they are gathered once, however many operators the table stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from paredown.runtime.native import views
from paredown.runtime.native.plan import WIDTH, Step, Tensor

if TYPE_CHECKING:
    from paredown.runtime.native.builder import Builder

SHORTEST = 16
"""Bytes of a row: below, a strided copy does as well."""


@dataclass(eq=False)
class Moved:
    """A tensor whose rows are those of ``base``, ``(count, columns)``, that ``rows`` names.

    ``rows`` has its shape but for the last dimension, -1 standing for zeros; ``names`` are the
    operators it stands for. ``made`` is where it lies, once somebody needed it in memory.
    """

    base: Tensor
    rows: torch.Tensor
    names: tuple[str, ...] = ()
    made: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return (*self.rows.shape, self.base.shape[1])

    def then(self, rows: torch.Tensor, name: str) -> Moved:
        """The same with its rows moved once more, by operator ``name``."""
        return Moved(self.base, rows, (*self.names, name))


def start(t: Tensor) -> Moved | None:
    """``t`` as rows of its last dimension, none moved yet; None where it does not lie so."""
    *outer, columns = t.shape
    if not outer or t.numel == 0 or t.strides[-1] != 1 or columns * WIDTH[t.dtype] < SHORTEST:
        return None
    steps = [s for n, s in zip(outer, t.strides, strict=False) if n > 1]
    pitch = min(steps, default=columns)
    if pitch < columns or any(s % pitch for s in steps):
        return None
    rows = torch.zeros((), dtype=torch.int64)
    for n, s in zip(outer, t.strides, strict=False):
        rows = rows[..., None] + torch.arange(n) * (s // pitch)
    base = replace(t, shape=(int(rows.max()) + 1, columns), strides=(pitch, 1))
    return Moved(base, rows)


def of(value: Any) -> Moved | None:
    """A value as moved rows, where it is or can be."""
    if isinstance(value, Moved):
        if value.made is None:
            return value
        value = value.made
    return start(value) if isinstance(value, Tensor) else None


ON_ROWS = (
    "aten.permute.default",
    "aten.transpose.int",
    "aten.slice.Tensor",
    "aten.narrow.default",
    "aten.unsqueeze.default",
)
RESHAPES = ("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints")


def viewed(value: Moved, node: torch.fx.Node) -> Moved | None:
    """A view of moved rows that keeps them whole, None where it does not."""
    shape, name = tuple(node.meta["val"].shape), str(node.target)
    if shape[-1] != value.base.shape[1]:
        return None
    if name in RESHAPES:
        return value.then(value.rows.reshape(shape[:-1]), node.name)
    if name in ON_ROWS:
        made = _on_rows(value.rows, node.target, node.args[1:])
        return None if made.shape != (*shape[:-1], 1) else value.then(made[..., 0], node.name)
    return None


def _on_rows(rows: torch.Tensor, op: Callable[..., Any] | Any, args: Any) -> torch.Tensor:
    """A view of the table with a last dimension of one in the place of the columns."""
    return op(rows[..., None], *args)


def settle(b: Builder, value: Moved) -> Tensor:
    """``value`` in memory: as the norm before it writes it, else gathered."""
    if value.made is None:
        value.made = _written(b, value) or _gathered(b, value)
    return value.made


def _written(b: Builder, value: Moved) -> Tensor | None:
    """Let the norm that makes the rows write them in this order, where nobody else reads them."""
    step = b.made.get(value.base.buffer)
    if step is None or step.op != "norm" or value.base.buffer in b.shared:
        return None
    old = step.tensors["out"]
    count, columns = step.fields["rows"], step.fields["cols"]
    whole = old.offset == value.base.offset and value.base.strides[0] == step.fields["out_stride"]
    read = any(_reads(s, old.buffer) for s in b.steps if s is not step)
    if not whole or read or columns != value.base.shape[1] or "in_rows" in step.constants:
        return None
    if count < value.base.shape[0]:
        return None
    fresh = replace(b.new(value.shape, old.dtype), scale=old.scale, zero=old.zero)
    b.drop(old.buffer)
    b.made[fresh.buffer] = step
    step.tensors["out"] = fresh
    step.fields |= {"rows": value.rows.numel(), "out_stride": columns}
    step.constants["in_rows"] = table(b, value)
    step.fused += value.names
    return fresh


def _reads(step: Step, buffer: str) -> bool:
    return any(t.buffer == buffer for t in step.tensors.values())


def _gathered(b: Builder, value: Moved) -> Tensor:
    out = b.new(value.shape, value.base.dtype)
    out = replace(out, scale=value.base.scale, zero=value.base.zero)
    gather(b, value, out)
    return out


def gather(
    b: Builder, value: Moved, out: Tensor, op: str = "none", other: Tensor | None = None
) -> None:
    """``out = value op other``, both row-major, as one elementwise step over moved rows."""
    laid = replace(value.base, shape=value.shape, strides=views.contiguous(value.shape))
    b.elementwise(laid, out, op, other)
    step = b.made[out.buffer]
    # Row-major over row-major: the step goes by whole rows, and only where one is read changes.
    assert step.fields["cols"] == value.base.shape[1]
    step.tensors["a"] = value.base
    step.fields["a_stride"] = value.base.strides[0]
    step.constants["a_rows"] = table(b, value)
    step.fused[:0] = value.names


def table(b: Builder, value: Moved) -> str:
    """The constant with the rows, kept once for all steps that move rows alike."""
    rows = value.rows.reshape(-1).to(torch.int32)
    key = ("rows", rows.numpy().tobytes())
    if key not in b.tables:
        b.tables[key] = b.constant(rows)
    return b.tables[key]
