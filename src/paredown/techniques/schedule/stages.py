"""Which early part of a captured run can be computed in patches, read from its dataflow.

A stage begins where the first module reads the image and may end after any operator behind which
one map alone is needed. It holds what reads a bounded neighbourhood: convolutions, pools, norms
with fixed statistics, pointwise operators, sums and concatenations, in any wiring. A mean over the
image (squeeze-and-excitation) ends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from paredown.graph import rules
from paredown.graph.graph import Graph, Node, Ref, Tensor
from paredown.runtime.patches import (
    AVG_POOL,
    BATCH_NORM,
    CAT,
    CONV,
    MAX_POOL,
    PAD,
    SLICE,
    Op,
    Stage,
    make_op,
)

COPIES = ("aten::clone", "aten::_to_copy", "aten::to", "aten::contiguous")
WHOLE = (
    "tril",
    "triu",
    "dropout",
    "isin",
    "glu",
    "rrelu",
    "binary_cross_entropy",
    "loss",
    "kl_div",
)
"""Parts of names of elementwise operators that look at more than the element, or draw."""
FLOATS = ("float32", "bfloat16", "float16")


class _Refusal(Exception):
    """Why an operator cannot be computed in patches."""


@dataclass(frozen=True)
class Unit:
    """A module that is called once within the stage: its path, channels and dtype of its result."""

    path: str
    channels: int
    dtype: str


@dataclass(frozen=True)
class Cut:
    """A stage and where it ends: the last node's index, the modules that it is made of."""

    stage: Stage
    units: tuple[Unit, ...]
    end: int
    nodes: tuple[int, ...]
    """The graph's node behind every operator of the stage."""


@dataclass
class Found:
    """Where stages may end, and why they go no further."""

    cuts: list[Cut] = field(default_factory=list)
    reason: str = ""


def find(graph: Graph) -> Found:
    """Every stage of a captured forward run, the shortest first."""
    out = Found()
    flow = _Flow(graph)
    first = flow.first()
    if first is None:
        out.reason = "no module convolves an image"
        return out
    out.reason = "the whole network reads bounded neighbourhoods"
    ops: list[tuple[Node, Op]] = []
    for node in graph.nodes:
        tiled = flow.depends(node)
        if not node.outputs or (tiled and node.index < first.index) or flow.dead(node):
            continue
        try:
            ops.append((node, flow.read(node, tiled)))
        except _Refusal as e:
            if not tiled:
                # Something computed from weights alone that no stage needs, or it fails there.
                continue
            where = f" in {node.module}" if node.module else ""
            out.reason = f"{node.op}{where} {e}"
            break
        if tiled and (cut := flow.cut(first, node, ops)) is not None:
            out.cuts.append(cut)
    if not out.cuts:
        out.reason = f"nothing before it can be cut off: {out.reason}"
    return out


class _Flow:
    """Who reads which map of a run, and which of them come from the image."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.image: set[int] = {t for t in graph.inputs if len(graph.tensors[t].shape) == 4}
        for node in graph.nodes:
            if any(t in self.image for t in node.inputs):
                self.image.update(node.outputs)
        self.last: dict[int, int] = {}
        self.range: dict[str, tuple[int, int]] = {}
        for node in graph.nodes:
            self.last.update(dict.fromkeys(node.inputs, node.index))
            for path in _prefixes(node.module):
                low, _ = self.range.get(path, (node.index, 0))
                self.range[path] = (low, node.index)
        self.last.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
        self.made = graph.producers()

    def depends(self, node: Node) -> bool:
        """Whether a node computes something of the image."""
        return any(t in self.image for t in node.inputs)

    def dead(self, node: Node) -> bool:
        """Whether nobody reads what a node makes (the empty tensors beside a batch norm)."""
        return not any(t in self.last for t in node.outputs)

    def first(self) -> Node | None:
        """The first node of a module that reads the image, none unreadable before a convolution."""
        found: Node | None = None
        for node in self.graph.nodes:
            if not self.depends(node) or self.dead(node):
                continue
            try:
                self.read(node, tiled=True)
            except _Refusal:
                found = None
                continue
            if found is None and node.module:
                found = node
            if node.op == CONV:
                return found
        return None

    def read(self, node: Node, tiled: bool) -> Op:
        """A node as an operator of a stage; raises `_Refusal`."""
        op = node.op
        in_place = tiled and op.endswith("_") and rules.canonical(op) == op[:-1]
        op = op[:-1] if in_place else op
        args: list[Any] = [_encode(a, self) for a in node.args]
        kwargs = {k: _encode(v, self) for k, v in node.kwargs.items()}
        if tiled:
            self._bounded(op, node, in_place)
            if op == CONV:
                args = [*args, list(self.graph.tensors[node.inputs[1]].shape[2:])]
        return make_op(op, args, kwargs, node.outputs[0], tiled, in_place)

    def _bounded(self, op: str, node: Node, in_place: bool) -> None:
        """Raise unless the operator reads a bounded neighbourhood of maps."""
        tensor = self.graph.tensors
        out = tensor[node.outputs[0]]
        if len(out.shape) != 4:
            raise _Refusal(f"makes {len(out.shape)} dimensions of an image")
        if sum(t in self.last for t in node.outputs) > 1:
            raise _Refusal("has several results")
        maps = [tensor[t] for t in node.inputs if t in self.image]
        if op == CONV:
            if node.args[6] or len(maps) != 1 or node.inputs[0] not in self.image:
                raise _Refusal("is transposed or has computed weights")
        elif op == BATCH_NORM:
            if node.args[5]:
                raise _Refusal("takes the statistics of the batch")
        elif op in (MAX_POOL, AVG_POOL):
            _pool(op, node)
        elif op == PAD:
            if any(node.args[1][4:]) or min(node.args[1]) < 0:
                raise _Refusal("pads or crops other sides than the image's")
        elif op == CAT:
            dim = node.args[1] if len(node.args) > 1 else 0
            if dim not in (1, -3):
                raise _Refusal("joins maps along another dimension than channels")
        elif op == SLICE:
            if node.args[1] not in (1, -3):
                raise _Refusal("cuts another dimension than channels")
        else:
            self._pointwise(op, node, out, maps, in_place)

    def _pointwise(
        self, op: str, node: Node, out: Tensor, maps: list[Tensor], in_place: bool
    ) -> None:
        known = rules.kind(op) == "elementwise" and not any(w in op for w in WHOLE)
        if not known and op not in COPIES:
            raise _Refusal("reads more than a neighbourhood")
        if any(m.shape[2:] != out.shape[2:] for m in maps):
            raise _Refusal("spreads one map over another")
        for t in node.inputs:
            other = self.graph.tensors[t]
            if (
                t not in self.image
                and len(other.shape) > 1
                and any(n > 1 for n in other.shape[-2:])
            ):
                per_channel = len(other.shape) in (2, 3, 4) and other.shape[-2:] == (1, 1)
                if not per_channel:
                    raise _Refusal("takes weights with a place in the image")
        source = self.made.get(node.inputs[0])
        if in_place and source is not None and source.view:
            raise _Refusal("overwrites a part of a map")

    def cut(self, first: Node, end: Node, ops: list[tuple[Node, Op]]) -> Cut | None:
        """The stage from ``first`` to ``end``, where one map leaves it and modules make it up."""
        result = end.outputs[0]
        inside = [(n, o) for n, o in ops if not o.tiled or n.index >= first.index]
        tiled = [n for n, o in inside if o.tiled]
        made = {t for n in tiled for t in n.outputs}
        if any(self.last.get(t, -1) > end.index for t in made - {result}):
            return None
        starts = {t for n in tiled for t in n.inputs if t in self.image} - made
        if len(starts) != 1 or self.last.get(result, -1) <= end.index:
            return None
        units = list(self._units(first.index, end.index, tiled))
        paths = [u.path for u in units]
        whole = all(self._unit(n, first.index, end.index) for n in (tiled[0], end))
        if not whole or paths[-1] != self._unit(end, first.index, end.index):
            return None
        return self._stage(inside, starts.pop(), end, tuple(units))

    def _stage(
        self, inside: list[tuple[Node, Op]], start: int, end: Node, units: tuple[Unit, ...]
    ) -> Cut | None:
        """Only what the result needs, back from the end."""
        need, kept = {end.outputs[0]}, list[tuple[Node, Op]]()
        for node, op in reversed(inside):
            if op.out in need:
                need.update(op.reads)
                kept.append((node, op))
        kept.reverse()
        if need - {start} - {op.out for _, op in kept} or not any(o.windows for _, o in kept):
            return None
        stage = Stage(tuple(op for _, op in kept), start, end.outputs[0])
        return Cut(stage, units, end.index, tuple(n.index for n, _ in kept))

    def _units(self, low: int, high: int, tiled: list[Node]) -> Iterator[Unit]:
        """The largest modules that run within a range of nodes, in order, with what they return."""
        ends: dict[str, Node] = {}
        for node in tiled:
            path = self._unit(node, low, high)
            if path:
                ends[path] = node
        for path, node in ends.items():
            t = self.graph.tensors[node.outputs[0]]
            yield Unit(path, t.shape[1], t.dtype)

    def _unit(self, node: Node, low: int, high: int) -> str | None:
        for path in _prefixes(node.module):
            first, last = self.range[path]
            if low <= first and last <= high:
                return path
        return None


def _prefixes(path: str) -> Iterator[str]:
    """The modules around a path, the outermost first; the root is none of them."""
    parts = path.split(".") if path else []
    for i in range(1, len(parts) + 1):
        yield ".".join(parts[:i])


def _pool(op: str, node: Node) -> None:
    if op == AVG_POOL:
        padded = len(node.args) > 3 and any(_list(node.args[3]))
        if len(node.args) > 4 and node.args[4]:
            raise _Refusal("rounds its size up")
        if len(node.args) > 6 and node.args[6] is not None:
            raise _Refusal("divides by a number of its own")
        if padded and len(node.args) > 5 and not node.args[5]:
            raise _Refusal("leaves its padding out of the mean")
    elif node.args[2:3] and not _list(node.args[2]):
        raise _Refusal("has no stride")


def _list(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _encode(value: Any, flow: _Flow) -> Any:
    if isinstance(value, Ref):
        t = flow.graph.tensors[value.tensor]
        if t.kind in ("parameter", "buffer") and t.name:
            return {"w": t.name}
        if t.kind == "constant":
            raise _Refusal("reads a constant that is no buffer")
        return {"t": value.tensor}
    if isinstance(value, (list, tuple)):
        return [_encode(v, flow) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _Refusal(f"takes a {type(value).__name__}")
