"""The recorder: a dispatch mode that writes down operator calls, modules, lines and storage lifetimes."""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.graph.graph import Graph, Kind, Node, Phase, Ref, Storage, Tensor
from paredown.graph.tensors import held, walk
from paredown.workload import Workload

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_MODELS = tuple(_OURS + d + os.sep for d in ("zoo", "nn", "workloads", "apps"))
_user_files: dict[str, bool] = {}


def is_user_file(name: str) -> bool:
    """Whether a frame of this file is model code: not torch, and of paredown only its own networks."""
    known = _user_files.get(name)
    if known is None:
        inside = name.startswith((_TORCH, _OURS)) and not name.startswith(_MODELS)
        known = not inside and not name.startswith("<") and os.sep in name
        _user_files[name] = known
    return known


def user_line(frame: FrameType | None, stop: FrameType | None) -> str | None:
    """``file.py:12`` of the innermost frame of model code inside ``stop``."""
    while frame is not None and frame is not stop:
        if is_user_file(frame.f_code.co_filename):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def user_frame(e: BaseException) -> str:
    """The last line of the user's own code in a traceback, as `` (file.py:12: text)``, or nothing."""
    tb: TracebackType | None = e.__traceback__
    frames = [f for f in traceback.extract_tb(tb) if is_user_file(f.filename)]
    if not frames:
        return ""
    last = frames[-1]
    return f" ({os.path.basename(last.filename)}:{last.lineno}: {last.line or last.name})"


class Recorder(TorchDispatchMode):
    """Records operator calls between ``__enter__`` and ``__exit__``; one per capture.

    Storages are followed by weak references, so their lifetimes are those of the Python run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.phase: Phase = "forward"
        self._paths = {id(m): name for name, m in model.named_modules()}
        self._model = model
        self._nodes: list[Node] = []
        self._tensors: dict[int, Tensor] = {}
        self._storages: dict[int, Storage] = {}
        self._by_object: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._by_place: dict[tuple[Any, ...], int] = {}
        self._live: dict[int, tuple[int, Any]] = {}
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
                self._add(t, kind, name, created=-1)  # type: ignore[arg-type]
        named = [*((f"input{i}" if j == "" else f"input{i}.{j}", t)
                   for i, v in enumerate(workload.inputs) for j, t in walk(v)),
                 *walk(workload.kwargs)]
        for name, t in named:
            self._inputs.append(self._add(t, "input", name, created=-1))

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
        self._stack.append(self._paths.get(id(module), parent))

    def _leave_module(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._stack:
            self._stack.pop()

    # -- during the run ---------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and write it down."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        inputs: list[int] = []
        noted_args = tuple(self._note(a, inputs) for a in args)
        noted_kwargs = {k: self._note(v, inputs) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        index = len(self._nodes)
        outputs = [self._add(t, "intermediate", None, created=index) for _, t in walk(out)]
        self._nodes.append(
            Node(
                index=index,
                op=f"{func.namespace}::{func._schema.name.partition('::')[2]}",
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                args=noted_args,
                kwargs=noted_kwargs,
                module=self._stack[-1] if self._stack else "",
                line=user_line(sys._getframe().f_back, self._stop),
                phase=self.phase,
            )
        )
        return out

    def _note(self, value: Any, inputs: list[int]) -> Any:
        if isinstance(value, torch.Tensor):
            found = self._find(value)
            if found is None:
                found = self._add(value, "constant", None, created=-1)
            inputs.append(found)
            return Ref(found)
        if isinstance(value, (list, tuple)):
            return [self._note(v, inputs) for v in value]
        return value

    def _find(self, t: torch.Tensor) -> int | None:
        known = self._by_object.get(id(t))
        if known is not None and known[0]() is t:
            return known[1]
        return self._by_place.get(self._place(t))

    def _place(self, t: torch.Tensor) -> tuple[Any, ...]:
        s = t.untyped_storage()
        return (s._cdata, t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)

    def _add(self, t: torch.Tensor, kind: Kind, name: str | None, *, created: int) -> int:
        storage = self._storage(t, kind, created)
        tid = len(self._tensors)
        shape = tuple(int(d) for d in t.shape)
        dtype = str(t.dtype).removeprefix("torch.")
        nbytes = t.numel() * t.element_size()
        self._tensors[tid] = Tensor(tid, shape, dtype, nbytes, storage, kind, name)
        self._by_object[id(t)] = (weakref.ref(t), tid)
        self._by_place[self._place(t)] = tid
        return tid

    def _storage(self, t: torch.Tensor, kind: Kind, created: int) -> int:
        s = t.untyped_storage()
        known = self._live.get(s._cdata)
        if known is not None:
            return known[0]
        sid = len(self._storages)
        self._storages[sid] = Storage(sid, s.nbytes(), kind, created)
        self._live[s._cdata] = (sid, weakref.ref(s, partial(self._died, s._cdata, sid)))
        return sid

    def _died(self, address: int, sid: int, _: Any) -> None:
        if not self._done:
            self._storages[sid].freed = len(self._nodes) - 1
        if self._live.get(address, (None,))[0] == sid:
            del self._live[address]

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
