"""Doing and recording a change at once, and replaying a recorded one on a copy of the source."""

# Torch names a module's own tensors only in its private tables.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from paredown.errors import ArtefactError
from paredown.runtime import forms, spill
from paredown.technique import Change, Decisions, Edit, Lowers, Technique, Touches
from paredown.workload import Workload

PLAIN = (int, float, bool, str, type(None), torch.dtype)


class Editor:
    """Edits a copy of a workload and records each edit. One per rewrite.

    Tensors are replaced, never written into: the caller's model shares storages with the copy.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload.copy()
        self.edits: list[Edit] = []

    @property
    def model(self) -> nn.Module:
        """The copy being edited."""
        return self.workload.model

    def swap(self, path: str, module: nn.Module) -> None:
        """Put a form in place of the module at ``path``; it keeps the training flag."""
        cls = type(module).__name__
        config = getattr(module, "config", dict)()
        if forms.FORMS.get(cls) is not type(module):
            raise TypeError(f"{cls} is not a registered form: decorate it with runtime.forms.form")
        module.train(self.model.get_submodule(path).training)
        spill.settle(module)
        _put(self.model, path, module)
        self.edits.append(Edit("swap", path, cls=cls, config=config))

    def tensor(
        self, path: str, name: str, value: torch.Tensor | None, *, tied: bool = False
    ) -> None:
        """Replace, add (``value``) or remove (None) the parameter or buffer ``name`` at ``path``.

        With ``tied`` every other name of the same tensor follows and stays the same object.
        """
        module = self.model.get_submodule(path)
        others = list(_other_names(self.model, module, name)) if tied else []
        _set_tensor(module, name, value)
        shape = None if value is None else tuple(value.shape)
        dtype = None if value is None else str(value.dtype).removeprefix("torch.")
        self.edits.append(Edit("tensor", path, name, shape=shape, dtype=dtype))
        for other, own in others:
            _tie(self.model, other, own, f"{path}.{name}" if path else name)
            self.edits.append(Edit("tie", other, own, value=f"{path}.{name}" if path else name))

    def tie(self, path: str, name: str, to: str) -> None:
        """Make the parameter or buffer ``name`` at ``path`` the very tensor that ``to`` names."""
        _tie(self.model, path, name, to)
        self.edits.append(Edit("tie", path, name, value=to))

    def attr(self, path: str, name: str, value: Any) -> None:
        """Set an attribute that the module already has to a plain value (numbers, tuples of
        them).
        """
        _set_attr(self.model.get_submodule(path), path, name, value)
        self.edits.append(Edit("attr", path, name, value=_plain(value)))

    def attach(self, path: str, cls: str, config: dict[str, Any] | None = None) -> None:
        """Put a hook of the closed list on the module at ``path``."""
        forms.attach(cls, self.model.get_submodule(path), config or {})
        self.edits.append(Edit("attach", path, cls=cls, config=config or {}))

    def change(
        self,
        technique: Technique,
        sites: Iterable[str],
        decisions: Decisions,
        *,
        renames: dict[str, tuple[str, ...]] | None = None,
        notes: list[str] | None = None,
    ) -> Change:
        """The finished change; raises ``NotApplicable`` through the technique if nothing was
        edited.
        """
        renames = renames or {}
        self.workload.aliases = compose(self.workload.aliases, renames)
        touched: dict[str, frozenset[Touches]] = {s: technique.touches for s in sites}
        lowers: frozenset[Lowers] = technique.lowers
        return Change(
            self.workload,
            self.edits,
            decisions,
            lowers,
            touched,
            renames,
            list(notes or []),
            technique.name,
            technique.settings(),
        )


def compose(
    aliases: dict[str, tuple[str, ...]], renames: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Aliases after further renames: original paths stay the keys."""
    out = {
        original: tuple(p for now in paths for p in renames.get(now, (now,)))
        for original, paths in aliases.items()
    }
    moved = {now for paths in aliases.values() for now in paths}
    for path, to in renames.items():
        if path not in moved:
            out[path] = to
    return out


def replay(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """Carry recorded edits out on a model in place, structure only: tensors come out uninitialised.

    Raises ``ArtefactError`` when the source no longer has a path or attribute that an edit names.
    """
    for e in edits:
        try:
            module = model.get_submodule(e.path)
        except AttributeError:
            raise ArtefactError(
                f"the source has no module {e.path!r}: is it the same model?"
            ) from None
        if e.op == "swap":
            new = forms.build(e.cls, e.config)
            new.train(module.training)
            _put(model, e.path, new)
        elif e.op == "attach":
            forms.attach(e.cls, module, e.config)
        elif e.op == "tie":
            _tie(model, e.path, e.name, e.value)
        elif e.op == "attr":
            _set_attr(module, e.path, e.name, _unplain(e.value))
        elif e.shape is None:
            _set_tensor(module, e.name, None)
        else:
            dtype: torch.dtype = getattr(torch, e.dtype or "float32")
            _set_tensor(module, e.name, torch.empty(e.shape, dtype=dtype))
    return model


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    if not path:
        raise TypeError("the root module cannot be swapped")
    old = model.get_submodule(path)
    # A module registered under several names (shared) stays shared.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, module)


def _other_names(model: nn.Module, module: nn.Module, name: str) -> Iterator[tuple[str, str]]:
    """Where else the tensor ``name`` of ``module`` is held, as (module path, own name)."""
    tensor = module._parameters.get(name, module._buffers.get(name))
    for path, other in model.named_modules():
        for own, held in (*other._parameters.items(), *other._buffers.items()):
            if held is tensor and held is not None and not (other is module and own == name):
                yield path, own


def _tie(model: nn.Module, path: str, name: str, to: str) -> None:
    owner, _, own = to.rpartition(".")
    try:
        holder = model.get_submodule(owner)
        target = holder._parameters[own] if own in holder._parameters else holder._buffers[own]
    except (AttributeError, KeyError):
        raise ArtefactError(f"{path}.{name} is tied to {to!r}, unknown to the source") from None
    setattr(model.get_submodule(path), name, target)


def _set_tensor(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
    if name in module._parameters:
        setattr(module, name, None if value is None else _parameter(value))
    elif name in module._buffers:
        persistent = name not in module._non_persistent_buffers_set
        module.register_buffer(name, value, persistent=persistent)
    elif value is not None:
        module.register_parameter(name, _parameter(value))
    else:
        raise ArtefactError(f"no tensor {name!r} to remove from {type(module).__name__}")


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=value.is_floating_point())


def _set_attr(module: nn.Module, path: str, name: str, value: Any) -> None:
    if name.startswith("_") or name not in vars(module):
        raise ArtefactError(f"{type(module).__name__} at {path!r} has no plain attribute {name!r}")
    flat = value if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, PLAIN) for v in flat):
        raise ArtefactError(
            f"attribute {name!r} at {path!r} must be plain, got {type(value).__name__}"
        )
    setattr(module, name, value)


def _plain(value: Any) -> Any:
    """JSON-able form of a plain attribute: dtypes as ``torch.float32`` strings, tuples as lists."""
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, torch.dtype) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_unplain(v) for v in value)
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return value
