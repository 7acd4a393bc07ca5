"""Forms and hooks: the closed list of what a change may put into a model.

A form is a plain `nn.Module` with ``config()`` (JSON-able); its tensors travel in safetensors.
Artefacts name forms by class name only, so replaying one never runs foreign code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from paredown.errors import ArtefactError

M = TypeVar("M", bound=nn.Module)

FORMS: dict[str, type[nn.Module]] = {"Identity": nn.Identity}
HOOKS: dict[str, Callable[[nn.Module, dict[str, Any]], None]] = {}

# Modules of ours that register forms and hooks; a replay imports these and nothing else.
MODULES = (
    "paredown.runtime.quantized",
    "paredown.runtime.casts",
    "paredown.runtime.forms_lowrank",
    "paredown.runtime.forms_mixed",
    "paredown.runtime.forms_low_bit",
    "paredown.runtime.forms_codebook",
    "paredown.runtime.forms_fixed",
    "paredown.runtime.forms_binary",
    "paredown.runtime.forms_two_of_four",
    "paredown.runtime.bounded_cache",
    "paredown.runtime.nf4",
    "paredown.runtime.quantized_attention",
    "paredown.runtime.zeros",
    "paredown.runtime.token_merging",
    "paredown.runtime.token_propagation",
    "paredown.runtime.exits",
    "paredown.runtime.results",
    "paredown.runtime.adaptive_mlp",
    "paredown.runtime.patched",
)


def form(cls: type[M]) -> type[M]:
    """Register a module class that a change may swap in (class decorator)."""
    FORMS[cls.__name__] = cls
    return cls


def hook(install: Callable[[nn.Module, dict[str, Any]], None]) -> Callable[..., None]:
    """Register a hook installer ``(module, config) -> None`` that a change may attach."""
    HOOKS[install.__name__] = install
    return install


def build(name: str, config: dict[str, Any]) -> nn.Module:
    """A form from its name and configuration; weights are uninitialised until they are loaded."""
    _register()
    if name not in FORMS:
        raise ArtefactError(f"unknown form {name!r}: this artefact needs a newer paredown")
    cls = FORMS[name]
    make = getattr(cls, "from_config", None)
    return make(config) if make is not None else cls(**config)


def attach(name: str, module: nn.Module, config: dict[str, Any]) -> None:
    """Put a hook of the closed list on a module."""
    _register()
    if name not in HOOKS:
        raise ArtefactError(f"unknown hook {name!r}: this artefact needs a newer paredown")
    HOOKS[name](module, config)


def _register() -> None:
    for name in MODULES:
        importlib.import_module(name)
