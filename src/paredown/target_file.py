"""A target in a user's Python file: the file imported once, the workload in it found and made."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from paredown.blame import blame
from paredown.errors import ParedownError, TargetError
from paredown.files import sha256
from paredown.workload import Workload, as_call

PREFERRED = ("workload", "target", "model")
"""Names looked for first in a file that has several candidates."""


def from_file(path: Path, name: str | None) -> Workload:
    """The workload that a file holds under a name, or the one it can only mean without.

    Raises ``TargetError``, with the user's own last line when their code raised.
    """
    # Seeded, so that a child process that builds the target again gets the same untrained weights.
    with _importable(path.resolve().parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _import(path)
        if name is None:
            name = _choose(module, path)
        elif not hasattr(module, name):
            has = ", ".join(_candidates(module)) or "nothing that could be one"
            raise TargetError(f"{path} has no {name!r}; it has {has}")
        found = getattr(module, name)
        if callable(found) and not isinstance(found, nn.Module):
            found = _call(found, f"{path.name}:{name}")
    workload = as_workload(found, f"{path.name}:{name}")
    if workload.name == "model":
        workload = replace(workload, name=path.stem)
    if workload.run != "train_step":
        workload.model.eval()
    return workload


def _import(path: Path) -> ModuleType:
    """The user's file as a module of its own name, executed once per content."""
    unique = f"paredown_target_{path.stem}_{sha256(path)[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        del sys.modules[unique]
        if isinstance(e, ParedownError):
            raise
        if isinstance(e, SyntaxError) and e.filename == str(path.resolve()):
            raise TargetError(f"{path}:{e.lineno}: {e.msg}") from e
        raise TargetError(f"{path} raised on import: {blame(e)}") from e
    return module


@contextmanager
def _importable(folder: Path) -> Generator[None]:
    """Let the user's file import its neighbours: first while it runs, last afterwards."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def _choose(module: ModuleType, path: Path) -> str:
    found = _candidates(module)
    for name in PREFERRED:
        if name in found:
            return name
    sure = [n for n, v in found.items() if not inspect.isfunction(v)]
    named = [n for n, v in found.items() if inspect.isfunction(v) and _returns_workload(v)]
    for names in (sure, named, list(found)):
        if len(names) == 1:
            return names[0]
        if names:
            raise TargetError(
                f"{path} has several targets: say {path}:NAME, one of {', '.join(names)}"
            )
    has = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
    raise TargetError(
        f"{path} has no target (a Workload, a model with inputs, or a function without arguments "
        f"that returns one); it has {has}"
    )


def _candidates(module: ModuleType) -> dict[str, Any]:
    """What in a module could be a target, by name."""

    def fits(value: Any) -> bool:
        if isinstance(value, nn.Module):
            return _own(value) is not None
        if isinstance(value, tuple):
            return len(value) == 2 and isinstance(value[0], nn.Module)
        if inspect.isfunction(value):
            return value.__module__ == module.__name__ and _bare(value)
        return isinstance(value, Workload)

    return {n: v for n, v in vars(module).items() if not n.startswith("_") and fits(v)}


def _bare(function: Callable[..., Any]) -> bool:
    """Whether a function can be called without arguments."""
    parameters = inspect.signature(function).parameters.values()
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )


def _returns_workload(function: Callable[..., Any]) -> bool:
    return "Workload" in str(inspect.signature(function).return_annotation)


def _call(function: Callable[..., Any], where: str) -> Any:
    try:
        if not _bare(function):
            raise TargetError(f"{where} takes arguments: a target is a function without any")
        return function()
    except ParedownError:
        raise
    except (Exception, SystemExit) as e:
        raise TargetError(f"{where} raised: {blame(e)}") from e


def as_workload(found: Any, where: str) -> Workload:
    """A workload from what a target holds: one, a model with ``inputs``, or ``(model, inputs)``."""
    if isinstance(found, Workload):
        return found
    if isinstance(found, tuple):
        pair = cast("tuple[Any, ...]", found)
        if len(pair) == 2 and isinstance(pair[0], nn.Module):
            args, kwargs = as_call(pair[1])
            return Workload(pair[0], args, kwargs)
    if isinstance(found, nn.Module):
        inputs = _own(found)
        if inputs is None:
            raise TargetError(f"{where} is a model without example inputs: give (model, inputs), "
                              "a Workload, or the model an attribute `inputs`")  # fmt: skip
        args, kwargs = as_call(inputs)
        return Workload(found, args, kwargs)
    raise TargetError(f"{where} is a {type(found).__name__}: a target is a Workload, a model with "
                      "inputs, or a function without arguments that returns one")  # fmt: skip


def _own(model: nn.Module) -> Any:
    """The example inputs a model carries, None when it has none."""
    for name in ("inputs", "example_inputs", "dummy_inputs"):
        value = getattr(model, name, None)
        if value is not None and not callable(value):
            return value
    return None
