"""A Graph from an ONNX file: its operators under the names that the rules know, shapes inferred.

An operator without a counterpart, or whose shapes inference does not find (they depend on data),
keeps its ONNX name (``onnx::NonZero``) and is reported unpriced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from paredown.graph.graph import Graph, Kind, Node, Ref, Storage, Tensor
from paredown.graph.onnx_operators import VIEWS, called
from paredown.graph.onnx_shapes import inferred_shapes
from paredown.graph.rules import annotate

DTYPES: dict[str, tuple[str, float]] = {
    "FLOAT": ("float32", 4),
    "DOUBLE": ("float64", 8),
    "FLOAT16": ("float16", 2),
    "BFLOAT16": ("bfloat16", 2),
    "INT64": ("int64", 8),
    "UINT64": ("uint64", 8),
    "INT32": ("int32", 4),
    "UINT32": ("uint32", 4),
    "INT16": ("int16", 2),
    "UINT16": ("uint16", 2),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "INT4": ("int4", 0.5),
    "UINT4": ("uint4", 0.5),
}

GRIDS = (".scale", ".zero", ".in_scale", ".in_zero")
"""Tensors of a quantized layer that are no weights: scales and zero points."""


def from_onnx(
    model: Any,
    inputs: Mapping[str, Sequence[int]],
    layers: Iterable[str] = (),
    precision: str = "float32",
) -> Graph:
    """The graph of an ``onnx.ModelProto`` run on inputs of the given shapes, priced by rules.

    ``layers`` are nodes that stand as modules of their own, operators of the domain ``paredown``
    known by their names in `runtime.ops`; ``precision`` is what float32 values are computed in.
    """
    build = _Build(model, inputs, layers, precision)
    for proto in build.graph.node:
        build.node(proto)
    return annotate(build.finish())


class _Build:
    """Values to tensors, nodes to calls, last uses to lifetimes."""

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Sequence[int]],
        layers: Iterable[str],
        precision: str,
    ) -> None:
        self.graph = model.graph
        self.layers, self.precision = frozenset(layers), precision
        self.fixed: set[str] = set()
        """Values that follow from weights alone: a runtime computes them once."""
        self.shapes = inferred_shapes(model, inputs)
        self.nodes: list[Node] = []
        self.tensors: dict[int, Tensor] = {}
        self.storages: dict[int, Storage] = {}
        self.ids: dict[str, int] = {}
        for i in self.graph.initializer:
            weight = _dtype(i.data_type)[0] in ("float32", "float16", "bfloat16", "int8", "uint8")
            # A scalar is an operator's setting, not something that was learnt.
            kind: Kind = "parameter" if weight and i.dims else "constant"
            if i.name.endswith(GRIDS) and i.name.rpartition(".")[0] in self.layers:
                kind = "buffer"
            self._declare(i.name, tuple(i.dims), i.data_type, kind)
            self.fixed.add(i.name)
        for v in self.graph.input:
            if v.name not in self.ids:
                shape, dtype = self.shapes[v.name]
                self._declare(v.name, shape, dtype, "input")
        self.given = tuple(t.id for t in self.tensors.values() if t.kind == "input")

    def node(self, proto: Any) -> None:
        """Record one operator; constants become tensors without one."""
        if proto.op_type == "Constant":
            value = next((a.t for a in proto.attribute if a.name == "value"), None)
            dims, dtype = ((), 1) if value is None else (tuple(value.dims), value.data_type)
            self._declare(proto.output[0], dims, dtype, "constant")
            return
        index = len(self.nodes)
        ins = [self.ids[n] for n in proto.input if n in self.ids]
        known = all(n in self.shapes for n in proto.output if n)
        outs: list[int] = []
        for name in (n for n in proto.output if n):
            shape, dtype = self.shapes.get(name, ((), 1))
            share = self.tensors[ins[0]].storage if self._is_view(proto) and ins else None
            outs.append(self._declare(name, shape, dtype, "intermediate", index, share))
        op, args = f"onnx::{proto.op_type}", ()
        if known:
            refs = tuple(Ref(self.ids[n]) if n in self.ids else None for n in proto.input)
            op, args = called(proto, refs, self._shape, view=self._is_view(proto))
        if all(n in self.fixed for n in proto.input if n):
            self.fixed.update(proto.output)
        self.nodes.append(
            Node(index, op, tuple(ins), tuple(outs), args, {}, self._module(proto.name))
        )
        for i in ins:
            self.storages[self.tensors[i].storage].freed = index

    def _is_view(self, proto: Any) -> bool:
        """Whether an operator moves nothing; a weight is turned once, when the model is loaded."""
        turned = proto.op_type == "Transpose" and proto.input[0] in self.fixed
        return proto.op_type in VIEWS or turned

    def _module(self, name: str) -> str:
        """The layer that a node is or is part of, else the scope its name tells."""
        own = name.partition("/")[0]
        return own if own in self.layers else name.replace("/", ".").strip(".").rpartition(".")[0]

    def finish(self) -> Graph:
        """The graph; what the caller gave or gets is never freed by the run."""
        outputs = tuple(self.ids[o.name] for o in self.graph.output if o.name in self.ids)
        for s in self.storages.values():
            if s.created < 0:
                s.freed = None
        for i in outputs:
            self.storages[self.tensors[i].storage].freed = None
        kept = dict.fromkeys((n.module for n in self.nodes), "Scope") | {"": "OnnxModule"}
        kept |= {n.module: n.op.rpartition("::")[2] for n in self.nodes if n.module in self.layers}
        note = "operators of an ONNX file, under the names of their torch counterparts"
        return Graph(
            self.nodes, self.tensors, self.storages, self.given, outputs, kept, [note], None
        )

    def _declare(
        self,
        name: str,
        shape: tuple[int, ...],
        data_type: int,
        kind: Kind,
        created: int = -1,
        storage: int | None = None,
    ) -> int:
        dtype, width = _dtype(data_type)
        if dtype == "float32" and self.precision != dtype and kind == "intermediate":
            dtype, width = self.precision, 2
        nbytes = int(prod(shape) * width)
        if storage is None:
            storage = len(self.storages)
            self.storages[storage] = Storage(storage, nbytes, kind, created, max(created, 0))
        tid = len(self.tensors)
        known = None if kind == "intermediate" else name
        self.tensors[tid] = Tensor(tid, shape, dtype, nbytes, storage, kind, known)
        self.ids[name] = tid
        return tid

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[self.ids[name]].shape


def _dtype(data_type: int) -> tuple[str, float]:
    import onnx

    return DTYPES.get(onnx.TensorProto.DataType.Name(data_type), ("unknown", 1))
