"""A user's ``.onnx`` file as a module: its layers as modules below it, run by ONNX Runtime.

Numeric techniques act on the layers (`onnx_layers`); whatever else needs a torch module refuses
(`needs_torch`).
"""

# torch keeps its modules' tables private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from paredown.errors import InputError, LoweringError, NotApplicable, TargetError
from paredown.graph.graph import Graph
from paredown.graph.onnx import from_onnx
from paredown.runtime.backend import Asked
from paredown.runtime.onnx_batch import joined, part
from paredown.runtime.onnx_file import external, ports, read
from paredown.runtime.onnx_layers import install, take_apart
from paredown.runtime.onnx_render import asked_of, lowered, render
from paredown.runtime.onnx_write import serialised
from paredown.workload import Workload


class OnnxModule(nn.Module):
    """An ONNX file as a module of its inputs in order, its layers below it by their nodes' names.

    As read it is run from the file itself, by ONNX Runtime with its defaults; once a technique has
    changed a layer, as the reference that lowering is held against: quantize and dequantize
    operators one by one, nothing fused. Returns one tensor, or a tuple of several. A batch other
    than a fixed one of the file is cut into pieces.
    """

    own_backend: ClassVar[str] = "onnxruntime"

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = read(path)
        constants = {i.name for i in model.graph.initializer}
        self.path = path
        self.takes = [p for p in ports(model.graph.input, path) if p.name not in constants]
        self.gives = ports(model.graph.output, path)
        if not self.takes:
            raise TargetError(f"{path} has no inputs")
        self.input_names = [p.name for p in self.takes]
        self.precision = "float32"
        """What its float operators compute in, where a backend can: a technique sets it."""
        self.made_up = False
        """Whether the example inputs are random numbers: nobody gave any."""
        apart = take_apart(model)
        self.skeleton = apart.skeleton
        self._paths = tuple(apart.layers)
        self._names = apart.names
        install(self, apart.layers)
        self._foreign = _quantized_by_others(model)
        self._session: tuple[Any, _State] | None = None
        self._born: _State | None = _State(self)

    def layers(self) -> dict[str, nn.Module]:
        """The layers as they are now, by path."""
        return {path: self.get_submodule(path) for path in self._paths}

    @property
    def changed(self) -> bool:
        """Whether any layer differs from the file's."""
        return self._born is None or self._born != _State(self)

    def stored_bytes(self) -> int:
        """Bytes of the file and of its external weights."""
        from onnx import load

        beside = external(load(str(self.path), load_external_data=False), self.path)
        files = [self.path, *(self.path.parent / name for name in beside)]
        return sum(f.stat().st_size for f in files)

    def render(self, **how: bool) -> Any:
        """The model as its layers are now, as a ``ModelProto`` with `paredown` operators."""
        return render(self.skeleton, self.layers(), **how)

    def own_graph(self, inputs: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Graph:
        """The file's operators on inputs of these shapes (`graph.capture` asks for it)."""
        given = self._named(inputs, kwargs or {})
        shapes = {name: list(t.shape) for name, t in given.items()}
        graph = from_onnx(self.render(values=False), shapes, self._paths, self.precision)
        if self.made_up:
            graph.notes.append(
                "its inputs are random numbers of the declared shapes, and so is what ranges and "
                "fidelity are taken on: give example inputs or calibration data"
            )
        return graph

    def asked(self) -> dict[str, Asked]:
        """What its layers ask of the numbers; a file that came quantized asks as a whole."""
        if self._foreign and not self.changed:
            return {"": Asked("int8", "static")}
        return asked_of(self.layers(), self.precision)

    def sites(self) -> dict[str, str]:
        """Names that a runtime may give a layer's node -> the layer's path.

        A node fused with what follows it goes by the name of that.
        """
        nodes = self.skeleton.graph.node
        reads: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                reads.setdefault(name, []).append(node)
        made = {name for node in nodes for name in node.output}
        found: dict[str, str] = {}
        for node in nodes:
            at = node if node.name in self._paths else None
            while at is not None:
                found |= dict.fromkeys([at.name, *at.output], node.name)
                users = reads.get(at.output[0], [])
                at = users[0] if len(users) == 1 and _fuses(users[0], made) else None
        named = {name: path for name, path in self._names.items() if path in self._paths}
        return {**found, **named, **{path: path for path in self._paths}}

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Run it; inputs by position or by name, in the file's dtypes."""
        given = self._named(args, kwargs)
        watched = [p for p, m in self.layers().items() if m._forward_pre_hooks or m._forward_hooks]
        batch, count = self._batch(given)
        pieces = [
            self._run(part(given, start, batch, count), watched)
            for start in range(0, count or 1, batch or 1)
        ]
        out = pieces[0] if len(pieces) == 1 and batch == count else joined(pieces, batch, count)
        return out[0] if len(out) == 1 else tuple(out)

    def _run(self, given: dict[str, torch.Tensor], watched: list[str]) -> list[torch.Tensor]:
        feeds = {k: v.detach().contiguous().numpy() for k, v in given.items()}
        found = self._opened(tuple(watched)).run(None, feeds)
        out = [torch.from_numpy(np.asarray(o)) for o in found]
        for path, value in zip(watched, out[len(self.gives) :], strict=True):
            self.get_submodule(path)(value)
        return out[: len(self.gives)]

    def _opened(self, watched: tuple[str, ...]) -> Any:
        """The session of the layers as they are, on the threads torch has now, kept for reuse."""
        from paredown.runtime.onnxruntime_session import session

        threads, changed = torch.get_num_threads(), self.changed
        key = _State(self, threads, watched)
        if self._session is None or self._session[1] != key:
            if changed or watched:
                model = self.render()
                _watch(model.graph, watched)
                source = serialised(lowered(model, products=False))
                found = session(source, threads, plain=changed)
            else:
                found = self._file(threads)
            self._session = (found, key)
        return self._session[0]

    def _file(self, threads: int) -> Any:
        """A session of the file itself; ``TargetError`` when ONNX Runtime refuses it."""
        from paredown.runtime.onnxruntime_session import session

        try:
            return session(self.path, threads)
        except LoweringError as e:
            raise TargetError(f"{self.path}: {e}") from None

    def _named(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        given = dict(zip(self.input_names, args, strict=False)) | kwargs
        if set(given) != set(self.input_names) or len(args) > len(self.input_names):
            raise InputError(f"{self.path.name} takes the inputs {', '.join(self.input_names)}")
        for port in self.takes:
            t: Any = given[port.name]
            if not isinstance(t, torch.Tensor) or t.dtype != port.dtype:
                got = getattr(t, "dtype", type(t).__name__)
                raise InputError(
                    f"{self.path.name}: input {port.name!r} is {_short(port.dtype)}, got "
                    f"{_short(got)}"
                )
        return {name: given[name] for name in self.input_names}

    def _batch(self, given: dict[str, torch.Tensor]) -> tuple[int, int]:
        """The batch that the file fixes and that of a call; equal when there is nothing to cut."""
        fixed = {p.shape[0] for p in self.takes if p.shape}
        counts = {t.shape[0] for t in given.values() if t.ndim}
        if len(fixed) != 1 or len(counts) != 1 or None in fixed:
            return 1, 1
        (batch,), (count,) = fixed, counts
        return (batch, count) if batch and count and batch != count else (1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        """A copy with layers of its own; the file and the skeleton are shared, nothing changes
        them.
        """
        new = OnnxModule.__new__(OnnxModule)
        memo[id(self)] = new
        shared = {"skeleton": self.skeleton, "_session": None, "_born": None}
        for name, value in self.__dict__.items():
            new.__dict__[name] = shared[name] if name in shared else copy.deepcopy(value, memo)
        new._born = None if self.changed else _State(new)
        return new

    def __reduce__(self) -> Any:
        """Sent to another process as its path; only while it is as read."""
        if self.changed:
            raise TypeError(f"{self.path} was changed by a technique: it is saved, not pickled")
        return _read_again, (self.path, self.made_up)


def _read_again(path: Path, made_up: bool) -> OnnxModule:
    module = OnnxModule(path).eval()
    module.made_up = made_up
    return module


class _State:
    """What tells one set of layers from another: their tensors themselves, classes, precision.

    A rewrite replaces tensors and never writes into them, so the same objects are the same values.
    """

    def __init__(self, module: OnnxModule, *more: Any) -> None:
        self.held = [*module.parameters(), *module.buffers()]
        self.plain = (
            module.precision,
            [type(m).__name__ for m in module.layers().values()],
            more,
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _State)
            and self.plain == other.plain
            and len(self.held) == len(other.held)
            and all(a is b for a, b in zip(self.held, other.held, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def needs_torch(workload: Workload) -> str | None:
    """Why torch techniques cannot act on a workload, None when they can."""
    if isinstance(workload.model, OnnxModule):
        return f"{workload.name} is an ONNX file: this needs a torch module"
    return None


def refuse_onnx(workload: Workload) -> None:
    """Raise ``NotApplicable`` for a workload that is an ONNX file."""
    if why := needs_torch(workload):
        raise NotApplicable(why)


def _watch(graph: Any, paths: Sequence[str]) -> None:
    """Make the inputs of some layers outputs of the model as well."""
    from onnx import ValueInfoProto

    nodes = {n.name: n for n in graph.node}
    for path in paths:
        # An output may stand only once, and never for an input itself: a copy has its own name.
        copied = graph.node.add()
        copied.op_type, copied.name = "Identity", f"{path}/watch"
        copied.input.append(nodes[path].input[0])
        copied.output.append(f"{path}/watched")
        graph.output.append(ValueInfoProto(name=copied.output[0]))


_FUSED = frozenset(
    {"Add", "BatchNormalization", "Clip", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)


def _fuses(node: Any, made: set[str]) -> bool:
    """Whether a runtime may fuse a node into the layer before it: all else it reads is constant."""
    return node.op_type in _FUSED and sum(name in made for name in node.input) == 1


def _quantized_by_others(model: Any) -> bool:
    kinds = {n.op_type for n in model.graph.node}
    return bool(kinds & {"QLinearConv", "QLinearMatMul", "QuantizeLinear", "MatMulInteger"})


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
