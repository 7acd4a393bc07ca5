"""Strides of views: torch itself answers, on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from paredown.runtime.native.plan import Tensor


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of a shape."""
    out, step = [0] * len(shape), 1
    for i in reversed(range(len(shape))):
        out[i] = step
        step *= max(shape[i], 1)
    return tuple(out)


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of ``(n, c, h, w)`` laid out as NHWC."""
    _n, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def order(t: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory; those of size one come first."""
    sizes = list(zip(t.shape, t.strides, strict=True))
    return sorted(range(len(sizes)), key=lambda i: (sizes[i][0] > 1, -sizes[i][1], i))


def dense_like(t: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor of ``shape`` with its dimensions in the memory order of ``t``."""
    out, step = [0] * len(shape), 1
    for i in reversed(order(t)):
        out[i] = step
        step *= max(shape[i], 1)
    return tuple(out)


def view(t: Tensor, op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a view operator as tensors of the same buffer; None where it has to copy."""
    base = torch.empty_strided(t.shape, t.strides, dtype=torch.uint8, device="meta")
    try:
        made = op(base, *args, **kwargs)
    except RuntimeError:
        return None
    if isinstance(made, (tuple, list)):
        return [_part(t, base, m) for m in made]
    return _part(t, base, made)


def _part(t: Tensor, base: torch.Tensor, made: torch.Tensor) -> Tensor | None:
    same = made.untyped_storage()._cdata == base.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    if not same:
        return None
    return replace(
        t,
        shape=tuple(made.shape),
        strides=tuple(made.stride()),
        offset=t.offset + made.storage_offset(),
    )


@dataclass(frozen=True)
class Rows:
    """A tensor as ``rows`` of ``cols`` neighbouring elements, ``stride`` elements apart."""

    rows: int
    cols: int
    stride: int


def nested(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """One dimension ``(size, stride)`` for several, None when they do not nest."""
    count, stride, reach = 1, 0, 0
    for n, s in zip(reversed(sizes), reversed(strides), strict=True):
        if n == 1:
            continue
        if count == 1:
            stride = s
        elif s != reach:
            return None
        count *= n
        reach = s * n
    return count, stride


def rows(t: Tensor, last: int = 1) -> Rows | None:
    """``t`` as rows over its last ``last`` dimensions, None when its strides do not allow it."""
    split = len(t.shape) - last
    inner = nested(t.shape[split:], t.strides[split:])
    outer = nested(t.shape[:split], t.strides[:split])
    if inner is None or outer is None or (inner[0] > 1 and inner[1] != 1):
        return None
    stride = outer[1] if outer[0] > 1 else inner[0]
    return Rows(outer[0], inner[0], stride) if stride >= inner[0] or outer[0] == 1 else None


def pixels(t: Tensor) -> Rows | None:
    """``(n, c, h, w)`` as pixels of channels, None where it is not laid out so."""
    n, c, h, w = t.shape
    if c > 1 and t.strides[1] != 1:
        return None
    outer = nested((n, h, w), (t.strides[0], t.strides[2], t.strides[3]))
    if outer is None:
        return None
    stride = outer[1] if outer[0] > 1 else c
    return Rows(outer[0], c, stride) if stride >= c else None


@dataclass(frozen=True)
class Broadcast:
    """How `b` meets rows of `a`: element (row, col) is ``b[row // rows * stride + col * col]``."""

    rows: int
    cols: int
    a_stride: int
    b_rows: int
    b_stride: int
    b_col: int


def broadcast(
    sizes: Sequence[int], a: Sequence[int], b: Sequence[int], out: Sequence[int]
) -> tuple[Broadcast, int] | None:
    """Rows and columns for ``a op b`` over dimensions in memory order; also the stride of ``out``.

    Strides are elements, 0 where ``b`` repeats. None when no cut into rows and columns fits.
    """
    for cut in reversed(range(len(sizes) + 1)):
        inner = [nested(sizes[cut:], s[cut:]) for s in (a, b, out)]
        outer = [nested(sizes[:cut], s[:cut]) for s in (a, out)]
        if None in inner or None in outer:
            continue
        (cols, ia), (_, ib), (_, io) = inner  # type: ignore[misc]
        (count, oa), (_, oo) = outer  # type: ignore[misc]
        if cols > 1 and (ia != 1 or io != 1 or ib not in (0, 1)):
            continue
        found = _rows_of(sizes[:cut], b[:cut])
        if found is None or (cut == len(sizes) and len(sizes)):
            continue
        stride = oa if count > 1 else cols
        made = oo if count > 1 else cols
        return Broadcast(count, cols, stride, found[0], found[1], ib if cols > 1 else 0), made
    return None


def _rows_of(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """``(repeat, stride)`` so that row r reads ``r // repeat * stride``."""
    repeat, i = 1, len(sizes)
    while i and (strides[i - 1] == 0 or sizes[i - 1] == 1):
        repeat *= sizes[i - 1]
        i -= 1
    rest = nested(sizes[:i], strides[:i])
    if rest is None or (rest[0] > 1 and rest[1] == 0):
        return None
    return repeat, rest[1]
