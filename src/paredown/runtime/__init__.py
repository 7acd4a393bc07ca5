"""Backends: ways of running a network. ``backend(name)`` gives one, ``names()`` lists them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from paredown.errors import UnknownName
from paredown.runtime.backend import Backend

if TYPE_CHECKING:
    from paredown.workload import Workload

# name -> module:class; modules import their runtime only when they are used.
_BACKENDS = {
    "eager": "paredown.runtime.eager:Eager",
    "inductor": "paredown.runtime.inductor:Inductor",
    "native": "paredown.runtime.native.backend:Native",
    "onnxruntime": "paredown.runtime.onnxruntime:OnnxRuntime",
    "openvino": "paredown.runtime.openvino:OpenVino",
}

__all__ = ["backend", "names", "own_backend"]


def names() -> list[str]:
    """Every backend's name, installed or not (``backend(name).available()`` tells)."""
    return list(_BACKENDS)


def backend(name: str) -> Backend:
    """A backend by name; raises ``UnknownName`` with the nearest names."""
    if name not in _BACKENDS:
        raise UnknownName("backend", name, names())
    module, _, cls = _BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), cls)()


def own_backend(workload: Workload) -> str:
    """The backend a target runs in as its author runs it: the baseline of every ratio.

    ``eager`` for torch modules, ``onnxruntime`` for ONNX files (CONTRACTS, Baseline).
    """
    return getattr(workload.model, "own_backend", "eager")
