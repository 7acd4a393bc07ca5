"""Pare a neural network down until it fits a measured budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from paredown.artefact import load as load
    from paredown.errors import ParedownError as ParedownError
    from paredown.paring import down as down
    from paredown.runtime.onnx_workload import onnx_workload as onnx_workload
    from paredown.workload import Workload as Workload

# name -> module it is imported from on first use, so that `import paredown` stays light.
_LAZY = {
    "Workload": "paredown.workload",
    "ParedownError": "paredown.errors",
    "load": "paredown.artefact",
    "down": "paredown.paring",
    "onnx_workload": "paredown.runtime.onnx_workload",
}

__all__ = ["ParedownError", "Workload", "__version__", "down", "load", "onnx_workload"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'paredown' has no attribute {name!r}")
