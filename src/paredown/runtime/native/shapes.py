"""Views, copies and concatenations: views cost nothing, concatenated parts are written in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from paredown.runtime.native import moves, padded, views
from paredown.runtime.native.builder import Builder, Dequantized, Lacking, Value
from paredown.runtime.native.plan import Step, Tensor
from paredown.runtime.native.rules import argument, dtype_of, result, rule

VIEWS = (
    "aten.view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.expand.default",
    "aten.slice.Tensor",
    "aten.select.int",
    "aten.split.Tensor",
    "aten.split_with_sizes.default",
    "aten.chunk.default",
    "aten.unbind.int",
    "aten.narrow.default",
    "aten.movedim.int",
    "aten.alias.default",
    "aten.detach.default",
    "aten.numpy_T.default",
)
SAME = (
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.lift_fresh_copy.default",
    "aten.feature_dropout.default",
)


@rule(*VIEWS)
def view(b: Builder, node: torch.fx.Node) -> Value:
    """A view of the same memory; where strides do not allow it, of a row-major copy."""
    source: Any = node.args[0]
    value = b.env[source]
    if isinstance(value, Dequantized) and isinstance(value.q, Tensor):
        made = _view(b, value.q, node)
        if isinstance(made, moves.Moved):
            made = moves.settle(b, made)
        parts = made if isinstance(made, list) else [made]
        read = [Dequantized(p, value.scale, value.zero, value.axis, value.dtype) for p in parts]
        return read if isinstance(made, list) else read[0]
    if isinstance(value, moves.Moved) and value.made is None:
        if (further := moves.viewed(value, node)) is not None:
            return further
        value = source
    return _view(b, b.tensor(value), node)


def _view(b: Builder, t: Tensor, node: torch.fx.Node) -> Any:
    op: Any = node.target
    made = views.view(t, op, node.args[1:], dict(node.kwargs))
    missing = made is None or (isinstance(made, list) and None in made)
    laid = moves.start(t) if missing else None
    if laid is not None and (rows := moves.viewed(laid, node)) is not None:
        return rows
    if missing:
        made = views.view(
            b.copy(t, views.contiguous(t.shape)), op, node.args[1:], dict(node.kwargs)
        )
    if made is None or (isinstance(made, list) and None in made):
        raise Lacking(f"no view for {op}")
    return made


@rule(*SAME)
def same(b: Builder, node: torch.fx.Node) -> Value:
    """Nothing to do: layouts are the plan's own, and nothing is written in place."""
    if "dropout" in str(node.target) and argument(node, 2, "train", False):
        raise Lacking("dropout that is switched on")
    return b.env[node.args[0]]  # type: ignore[index]


@rule("aten.roll.default")
def roll(b: Builder, node: torch.fx.Node) -> Value:
    """A cyclic shift over other dimensions than the last."""
    shifts: Any = node.args[1]
    dims = argument(node, 2, "dims", [])
    value = _rows(b, node, dims)
    return value.then(torch.roll(value.rows, shifts, dims), node.name)


@rule("aten.constant_pad_nd.default", "aten.pad.default")
def pad(b: Builder, node: torch.fx.Node) -> Value:
    """Padding that its readers do themselves, or rows of zeros around others."""
    if (laid := padded.start(b, node)) is not None:
        return laid
    sides: Any = node.args[1]
    by: Any = list(sides)
    mode = argument(node, 2, "mode", "constant") if "aten.pad." in str(node.target) else "constant"
    fill = argument(node, 3 if "aten.pad." in str(node.target) else 2, "value", 0) or 0
    if mode != "constant" or fill != 0 or any(by[:2]):
        raise Lacking("padding other than by rows of zeros")
    value = _rows(b, node, [])
    rows = torch.nn.functional.pad(value.rows, by[2:], value=-1)
    return value.then(rows, node.name)


def _rows(b: Builder, node: torch.fx.Node, dims: Any) -> moves.Moved:
    """What ``node`` reads as rows of its last dimension, which is none of ``dims``."""
    source: Any = node.args[0]
    value = moves.of(b.env[source])
    last = len(result(node).shape) - 1
    if (
        value is None
        or last in [d % (last + 1) for d in dims]
        or (not dims and "roll" in str(node.target))
    ):
        raise Lacking("rows that are moved and changed")
    return value


@rule("getitem")
def getitem(b: Builder, node: torch.fx.Node) -> Value:
    """One of several results."""
    return b.env[node.args[0]][node.args[1]]  # type: ignore[index]


@rule("aten.cat.default", "aten.concat.default")
def cat(b: Builder, node: torch.fx.Node) -> Tensor:
    """Parts are written where they belong by the steps that make them, else copied there."""
    parts = [b.tensor(p) for p in node.args[0]]  # type: ignore[union-attr]
    shape, kind = tuple(result(node).shape), dtype_of(node)
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    if any(p.dtype != kind for p in parts) or any(p.numel == 0 for p in parts):
        raise Lacking("a concatenation of several dtypes")
    like = next((p for p in parts if p.buffer in b.buffers), parts[0])
    out = b.new(shape, kind, views.dense_like(like, shape))
    at = 0
    for part in parts:
        place = replace(out, shape=part.shape, offset=out.offset + at * out.strides[dim])
        if not _written_there(b, part, place):
            b.move(part, place)
        at += part.shape[dim]
    # Whoever adds the whole must come after the last part.
    b.made[out.buffer] = [s for s in b.steps if any(_writes(s, out.buffer))][-1]
    return out


def _writes(step: Step, buffer: str) -> list[bool]:
    return [step.tensors[name].buffer == buffer for name in step.writes]


def _written_there(b: Builder, part: Tensor, place: Tensor) -> bool:
    """Let the step that makes ``part`` write to ``place``; everybody reads it there."""
    step = b.made.get(part.buffer)
    buffer = b.buffers.get(part.buffer)
    if step is None or buffer is None or buffer.kind != "arena" or buffer.nbytes != _bytes(part):
        return False
    stride = _row_stride(place, part)
    if stride is None or step.fallback is not None or len(step.writes) != 1:
        return False
    if ROW_FIELD.get(step.op) is None or not _only_whole(b, part, step):
        return False
    name = step.writes[0]
    step.tensors[name] = replace(step.tensors[name], **_placed(place))
    step.fields[ROW_FIELD[step.op]] = stride
    for other in b.steps:
        for field, t in other.tensors.items():
            if t.buffer == part.buffer:
                other.tensors[field] = replace(t, **_placed(place))
                if (reads := READ_FIELD.get((other.op, field))) is not None:
                    other.fields[reads] = stride
    for n, value in list(b.env.items()):
        if isinstance(value, Tensor) and value.buffer == part.buffer:
            b.env[n] = replace(value, **_placed(place))
    b.drop(part.buffer)
    return True


def _placed(place: Tensor) -> dict[str, Any]:
    return {"buffer": place.buffer, "strides": place.strides, "offset": place.offset}


def _bytes(t: Tensor) -> int:
    return replace(t, offset=0).extent if t.offset == 0 else -1


ROW_FIELD = {
    "gemm": "ldc",
    "matvec": "ldy",
    "conv": "out_stride",
    "depthwise": "out_stride",
    "pool": "out_stride",
    "eltwise": "out_stride",
    "norm": "out_stride",
}
"""The field with the row stride of an operator's result."""

READ_FIELD = {
    ("gemm", "a"): "lda",
    ("gemm", "residual"): "residual_stride",
    ("matvec", "x"): "ldx",
    ("matvec", "residual"): "residual_stride",
    ("conv", "in"): "in_stride",
    ("conv", "residual"): "residual_stride",
    ("depthwise", "in"): "in_stride",
    ("depthwise", "residual"): "residual_stride",
    ("pool", "in"): "in_stride",
    ("global_pool", "in"): "in_stride",
    ("norm", "in"): "in_stride",
    ("eltwise", "a"): "a_stride",
}
"""The field with the row stride of what an operator reads."""


def _row_stride(place: Tensor, part: Tensor) -> int | None:
    """The stride between rows at ``place``, where ``part``'s rows are rows there too."""
    by = views.order(part)
    if views.order(place) != by or place.strides[by[-1]] != 1:
        return None
    sizes = [part.shape[i] for i in by]
    flat = views.nested(sizes[:-1], [place.strides[i] for i in by[:-1]])
    return None if flat is None else flat[1] if flat[0] > 1 else sizes[-1]


def _only_whole(b: Builder, part: Tensor, step: Step) -> bool:
    """Whether every reader takes ``part`` whole, by rows, so that only a stride changes."""
    cols = part.shape[views.order(part)[-1]]
    for other in b.steps:
        for field, t in other.tensors.items():
            if t.buffer != part.buffer:
                continue
            if (t.shape, t.strides, t.offset) != (part.shape, part.strides, part.offset):
                return False
            writes = other is step and field == step.writes[0]
            known = ROW_FIELD.get(other.op) if writes else READ_FIELD.get((other.op, field))
            if known is None or (other.op == "eltwise" and other.fields["cols"] != cols):
                return False
    for value in b.env.values():
        if isinstance(value, moves.Moved) and value.base.buffer == part.buffer:
            return False
        held = value.q if isinstance(value, Dequantized) else value
        for t in held if isinstance(held, list) else [held]:
            if isinstance(t, Tensor) and t.buffer == part.buffer:
                plain = (t.shape, t.strides, t.offset) == (part.shape, part.strides, part.offset)
                if not plain or held is not value or isinstance(held, list):
                    return False
    return True
