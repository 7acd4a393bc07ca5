"""Backends of the bench by name: how a task becomes something to call.

One interface for all (MultiKernelBench, section 3.3): ``make(task, threads)`` returns a kernel or
raises, and whatever it raises is a failed compilation. Ours are the runtimes of paredown; a user's
is any function, registered from Python or named on the command line as ``name=file.py:function``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.errors import InputError
from paredown.testing.bench.task import Task

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class KernelBackend:
    """``framework`` says that calling torch's own operators is what it is for."""

    name: str
    make: Callable[[Task, int], Kernel]
    framework: bool = False


BACKENDS: dict[str, KernelBackend] = {}


def register(backend: KernelBackend) -> KernelBackend:
    """Put a backend on the bench; raises ``InputError`` for a name that is taken."""
    if backend.name in BACKENDS:
        raise InputError(f"the bench has a backend {backend.name!r} already")
    BACKENDS[backend.name] = backend
    return backend


def from_file(text: str) -> KernelBackend:
    """A user's backend from ``name=file.py:function``; the file is run, as its author means it.

    ``function(task, threads)`` returns a kernel. Raises ``InputError`` for what is not there.
    """
    name, _, place = text.partition("=")
    if not (name and place):
        raise InputError(f"{text!r} is no backend: write name=file.py:function")
    return KernelBackend(name, function_of(place))


def function_of(place: str) -> Any:
    """The function of ``file.py:function``; raises ``InputError`` for what is not there."""
    path, _, attribute = place.rpartition(":")
    if not (path and attribute):
        raise InputError(f"{place!r} is no function: write file.py:function")
    if not Path(path).is_file():
        raise InputError(f"no file {path} for {place}")
    spec = importlib.util.spec_from_file_location(f"bench_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: Any = getattr(module, attribute, None)
    if not callable(found):
        raise InputError(f"{path} has no function {attribute!r}")
    return found


def _eager(task: Task, _threads: int) -> Kernel:
    return task.reference()


def _runtime(name: str) -> Callable[[Task, int], Kernel]:
    def make(task: Task, threads: int) -> Kernel:
        from paredown.runtime import backend
        from paredown.workload import Workload

        runtime = backend(name)
        lack = runtime.available()
        if lack is not None:
            raise InputError(lack)
        workload = Workload(task.reference(), task.inputs(1)[0], name=task.name)
        return runtime.lower(workload, threads=threads)

    return make


register(KernelBackend("eager", _eager, framework=True))
register(KernelBackend("inductor", _runtime("inductor"), framework=True))
for _name in ("native", "onnxruntime", "openvino"):
    register(KernelBackend(_name, _runtime(_name)))
