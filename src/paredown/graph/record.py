"""The recorder: a dispatch mode that notes operators, modules, lines and storage lifetimes."""

# Capture lives below torch's public surface: dispatch modes, storages, autograd nodes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import sys
import weakref
from collections import Counter
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from paredown.graph.graph import Graph, Kind, Node, Phase, Ref, Storage, Tensor
from paredown.graph.lines import user_line
from paredown.graph.memory import bytes_of, has_storage, nnz_of, place_of
from paredown.graph.mend import FILLED, LIFTED, MENDED
from paredown.graph.tensors import (
    KNOWN,
    held,
    held_packed,
    know,
    packed_weight,
    walk,
)
from paredown.graph.varying import share_now
from paredown.workload import Workload

_MARK = "paredown.module"
"""Key under which an autograd node remembers the module that made it."""


def op_name(func: Any) -> str:
    """``aten::add`` of an overload, ``higher_order::flex_attention`` of a higher-order operator."""
    plain = isinstance(func, torch._ops.OpOverload)
    return str(func._schema.name) if plain else f"higher_order::{func.name()}"


class Recorder(TorchDispatchMode):
    """Records operator calls while entered; one per capture.

    Storages are followed by weak references, so their lifetimes are those of the Python run. An
    in-place operator gives a new tensor id over the same storage. Higher-order operators
    (``flex_attention``) are one node each.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.phase: Phase = "forward"
        self._paths = {id(m): name for name, m in model.named_modules()}
        self._model = model
        self._nodes: list[Node] = []
        self._tensors: dict[int, Tensor] = {}
        self._storages: dict[int, Storage] = {}
        self._by_object: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._by_place: dict[int, dict[tuple[Any, ...], int]] = {}
        self._packed: dict[tuple[Any, ...], int] = {}
        self._live: dict[int, tuple[int, Any]] = {}
        self._owners: Counter[int] = Counter()
        self._stack: list[str] = []
        self._inputs: list[int] = []
        self._hooks: list[Any] = []
        self._stop: FrameType | None = None
        self._done = False

    # -- before the run ---------------------------------------------------------------------------

    def declare(self, workload: Workload) -> None:
        """Register parameters, buffers, constants and inputs, which exist before the run."""
        for kind, name, t in held(workload.model):
            if self._find(t) is None:
                self._add(t, kind, name, created=-1)
        for name, packed in held_packed(workload.model):
            self._note_packed(packed, name)
        positional = {f"input{i}": v for i, v in enumerate(workload.inputs)}
        for name, t in walk({**positional, **workload.kwargs}):
            self._inputs.append(self._add(t, "input", name, created=-1))

    def state(self, name: str, t: torch.Tensor) -> None:
        """Register a tensor that outlives the step, an optimizer's moment say."""
        if self._find(t) is None:
            self._add(t, "buffer", name, created=-1)

    def __enter__(self) -> Recorder:
        self._stop = sys._getframe().f_back
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for h in self._hooks:
            h.remove()
        self._stop = None

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        parent = self._stack[-1] if self._stack else ""
        if torch.is_grad_enabled():
            _mark(args, parent)
        self._stack.append(self._paths.get(id(module), parent))

    def _leave_module(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._stack:
            path = self._stack.pop()
            if torch.is_grad_enabled():
                _mark(out, path)

    # -- during the run ---------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operator and write it down."""
        kwargs = kwargs or {}
        plain = isinstance(func, torch._ops.OpOverload)
        if plain and func.namespace == "prim":
            return func(*args, **kwargs)
        inputs: list[int] = []
        index = len(self._nodes)
        # What the model's code writes down as numbers becomes a tensor anew in every run.
        since = index if func in LIFTED else -1
        noted_args = tuple(self._note(a, inputs, since) for a in args)
        noted_kwargs = {k: self._note(v, inputs, since) for k, v in kwargs.items()}
        out = self._call(func, args, kwargs)
        # The view of a tensor with known values is a new fake: it must not count as an allocation.
        base = self._tensors[inputs[0]].storage if plain and func.is_view and inputs else None
        outputs = [
            self._add(t, "intermediate", None, created=index, base=base) for _, t in walk(out)
        ]
        if plain and not outputs and func._schema.is_mutable:
            outputs = self._written(func, args, index)
        node = Node(
            index=index,
            op=op_name(func),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            args=noted_args,
            kwargs=noted_kwargs,
            module=self._module(),
            line=user_line(sys._getframe().f_back, self._stop),
            phase=self.phase,
            share=share_now(),
        )
        self._nodes.append(node)
        return out

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mended = MENDED.get(func)
        if mended is not None and isinstance(args[0], FakeTensor):
            return mended(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in FILLED and isinstance(out, FakeTensor) and out.numel() <= KNOWN:
            with _disable_current_modes():
                know(out, func(*args, **kwargs))
        return out

    def _module(self) -> str:
        if self.phase == "backward":
            current: Any = torch._C._current_autograd_node()
            if current is not None:
                return str(current.metadata.get(_MARK, ""))
        return self._stack[-1] if self._stack else ""

    def _written(self, func: Any, args: tuple[Any, ...], index: int) -> list[int]:
        """What an operator that returns nothing wrote into (``_foreach_add_``)."""
        written = [
            a
            for a, s in zip(args, func._schema.arguments, strict=False)
            if s.alias_info is not None and s.alias_info.is_write
        ]
        return [self._add(t, "intermediate", None, created=index) for _, t in walk(written)]

    def _note(self, value: Any, inputs: list[int], since: int) -> Any:
        if isinstance(value, torch.Tensor):
            found = self._find(value)
            if found is None:
                found = self._add(value, "constant", None, created=since)
            inputs.append(found)
            return Ref(found)
        if isinstance(value, (list, tuple)):
            return [self._note(v, inputs, since) for v in value]
        if isinstance(value, torch.ScriptObject):
            found = self._note_packed(value, None)
            if found is not None:
                inputs.append(found)
                return Ref(found)
        return value

    def _note_packed(self, packed: Any, name: str | None) -> int | None:
        """A packed weight of a quantized module, as a parameter tensor of its unpacked shape."""
        weight = packed_weight(packed)
        if weight is None:
            return None
        if name is None:
            # torch wraps a packed object anew at each call: it is known by its module and shape.
            known = self._packed.get((self._module(), tuple(weight.shape), weight.dtype))
            if known is not None:
                return known
        sid, tid = len(self._storages), len(self._tensors)
        nbytes = weight.numel() * weight.element_size()
        self._storages[sid] = Storage(sid, nbytes, "parameter", -1)
        dtype = str(weight.dtype).removeprefix("torch.")
        self._tensors[tid] = Tensor(tid, tuple(weight.shape), dtype, nbytes, sid, "parameter", name)
        path = self._module() if name is None else name.removesuffix("._packed_params")
        for holder in (path, path.removesuffix("._packed_params")):
            self._packed[holder, tuple(weight.shape), weight.dtype] = tid
        return tid

    def _find(self, t: torch.Tensor) -> int | None:
        known = self._by_object.get(id(t))
        if known is not None and known[0]() is t:
            return known[1]
        place = place_of(t)
        return None if place is None else self._by_place.get(place[0], {}).get(place[1])

    def _add(
        self,
        t: torch.Tensor,
        kind: Kind,
        name: str | None,
        *,
        created: int,
        base: int | None = None,
    ) -> int:
        storage = self._storage(t, kind, created, base)
        tid = len(self._tensors)
        dtype = str(t.dtype).removeprefix("torch.")
        shape = tuple(int(d) for d in t.shape)
        strides = tuple(int(d) for d in t.stride()) if has_storage(t) else None
        about = (bytes_of(t), storage, kind, name, nnz_of(t), strides)
        self._tensors[tid] = Tensor(tid, shape, dtype, *about)
        self._by_object[id(t)] = (weakref.ref(t), tid)
        place = place_of(t)
        if place is not None:
            self._by_place.setdefault(place[0], {})[place[1]] = tid
        return tid

    def _storage(self, t: torch.Tensor, kind: Kind, created: int, base: int | None) -> int:
        # Sparse and opaque tensors have no storage of their own: their object stands for it.
        plain = has_storage(t)
        owner: Any = t.untyped_storage() if plain else t
        address = owner._cdata if plain else -id(t)
        known = self._live.get(address)
        if known is not None and known[1]() is not None:
            return known[0]
        sid = len(self._storages) if base is None else base
        if base is None:
            nbytes = owner.nbytes() if plain else bytes_of(t)
            self._storages[sid] = Storage(sid, int(nbytes), kind, created)
        self._owners[sid] += 1
        self._live[address] = (sid, weakref.ref(owner, partial(self._died, address, sid)))
        return sid

    def _died(self, address: int, sid: int, _: Any) -> None:
        self._owners[sid] -= 1
        if not self._done and not self._owners[sid]:
            self._storages[sid].freed = len(self._nodes) - 1
        if self._live.get(address, (None,))[0] == sid:
            del self._live[address]
            self._by_place.pop(address, None)  # another tensor may come to lie there

    # -- after the run ----------------------------------------------------------------------------

    def finish(self, out: Any) -> Graph:
        """The graph, with the tensors inside ``out`` as its outputs."""
        self._done = True  # what is alive now outlives the run
        found = [self._find(t) for _, t in walk(out)]
        modules = {name: type(m).__name__ for name, m in self._model.named_modules()}
        return Graph(
            nodes=self._nodes,
            tensors=self._tensors,
            storages=self._storages,
            inputs=tuple(self._inputs),
            outputs=tuple(t for t in found if t is not None),
            modules=modules,
        )


def _mark(obj: Any, path: str) -> None:
    """Write a module path on the autograd nodes behind the tensors of ``obj`` that have
    none yet.
    """
    todo: list[Any] = [t.grad_fn for _, t in walk(obj) if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node is None or _MARK in node.metadata:
            continue
        node.metadata[_MARK] = path
        todo.extend(n for n, _ in node.next_functions)
