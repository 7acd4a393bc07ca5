"""Nested inputs and outputs as a flat list of tensors and a JSON-able description; never pickle.

Containers known: tensor, None and plain constants, list, tuple, mapping, named tuple, dataclass,
Hugging Face `ModelOutput` and caches. Classes are remembered while the process lives; a
description read from disk rebuilds `ModelOutput` classes by name from the installed transformers
(and nothing else from anywhere), other classes as a plain dict or tuple.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from paredown.errors import ArtefactError, InputError

Spec = dict[str, Any]
Classes = dict[str, type]

_CONSTANTS = (bool, int, float, str)
_HF_MODULE = re.compile(r"transformers(\.\w+)+")


def flatten(value: Any, leaves: list[torch.Tensor], classes: Classes) -> Spec:
    """Describe ``value``; its tensors are appended to ``leaves``, its classes to ``classes``.

    Raises ``InputError`` for an object that is none of the known containers.
    """
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return {"k": "tensor", "i": len(leaves) - 1}
    if value is None or isinstance(value, _CONSTANTS):
        return {"k": "const", "v": value}
    if isinstance(value, torch.dtype):
        return {"k": "dtype", "v": str(value).removeprefix("torch.")}
    name = _remember(type(value), classes)
    cache = _cache_parts(value)
    if cache is not None:
        kind, parts, settings = cache
        return {"k": kind, "v": [flatten(p, leaves, classes) for p in parts], "set": settings}
    if isinstance(value, Mapping):
        items = [[k, flatten(v, leaves, classes)] for k, v in value.items()]
        return {"k": "mapping", "cls": name, "v": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"k": kind, "cls": name, "v": [flatten(v, leaves, classes) for v in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        items = [[k, flatten(v, leaves, classes)] for k, v in fields.items()]
        return {"k": "dataclass", "cls": name, "v": items}
    raise InputError(
        f"cannot take a {type(value).__name__} apart into tensors: use tensors, tuples, lists, "
        f"dicts, dataclasses or Hugging Face outputs"
    )


def rebuild(spec: Spec, leaves: Sequence[Any], classes: Classes) -> Any:
    """The nested value again, with ``leaves`` in the places of its tensors."""
    kind = spec["k"]
    if kind == "tensor":
        return leaves[spec["i"]]
    if kind == "const":
        return spec["v"]
    if kind == "dtype":
        return getattr(torch, spec["v"])
    if kind in ("cache", "caches"):
        return _cache(kind, [rebuild(p, leaves, classes) for p in spec["v"]], spec["set"])
    if kind in ("list", "tuple"):
        values = [rebuild(v, leaves, classes) for v in spec["v"]]
        return _sequence(kind, values, classes.get(spec["cls"]))
    if kind in ("mapping", "dataclass"):
        items = {k: rebuild(v, leaves, classes) for k, v in spec["v"]}
        return _mapping(kind, items, classes.get(spec["cls"]))
    raise ArtefactError(f"unknown kind {kind!r} in an output description")


def names(spec: Spec, prefix: str = "") -> Iterator[str]:
    """A readable name for each tensor, in order: ``mask``, ``past.0.1`` ..."""
    kind = spec["k"]
    if kind == "tensor":
        yield prefix or "output"
    elif kind in ("mapping", "dataclass"):
        for key, item in spec["v"]:
            yield from names(item, f"{prefix}.{key}" if prefix else str(key))
    elif kind in ("list", "tuple", "cache", "caches"):
        for i, item in enumerate(spec["v"]):
            yield from names(item, f"{prefix}.{i}" if prefix else str(i))


def find_classes(spec: Spec) -> Classes:
    """Classes of a description read from disk: only `ModelOutput`s of transformers."""
    found: Classes = {}
    if name := spec.get("cls"):
        cls = _hugging_face(name)
        if cls is not None:
            found[name] = cls
    for item in spec["v"] if isinstance(spec.get("v"), list) else ():
        inner = item if isinstance(item, dict) else item[1]
        found.update(find_classes(inner))
    return found


def _remember(cls: type, classes: Classes) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    classes[name] = cls
    return name


def _sequence(kind: str, values: list[Any], cls: type | None) -> Any:
    if cls is not None and hasattr(cls, "_fields"):
        return cls(*values)
    return values if kind == "list" else tuple(values)


def _mapping(kind: str, items: dict[Any, Any], cls: type | None) -> Any:
    if cls is None or cls is dict:
        return items
    if kind == "dataclass" or hasattr(cls, "to_tuple"):
        return cls(**items)
    make: Callable[[dict[Any, Any]], Any] = cls
    return make(items)


def _hugging_face(name: str) -> type | None:
    module, _, qualname = name.partition(":")
    if not _HF_MODULE.fullmatch(module) or not qualname.isidentifier():
        return None
    try:
        from transformers.utils.generic import ModelOutput

        cls = getattr(importlib.import_module(module), qualname, None)
    except ImportError:
        return None
    return cls if isinstance(cls, type) and issubclass(cls, ModelOutput) else None


def _cache_parts(value: Any) -> tuple[str, list[Any], list[Any]] | None:
    """Kind, parts and settings of transformers' growing caches, None for anything else.

    A ``cache`` has a (keys, values) pair to each layer, and to each that slides its window and the
    tokens seen so far; ``caches`` are an encoder-decoder's two.
    """
    module = sys.modules.get("transformers.cache_utils")
    if module is None:
        return None
    if type(value) is module.EncoderDecoderCache:
        return "caches", [value.self_attention_cache, value.cross_attention_cache], []
    if type(value) is not module.DynamicCache:
        return None
    settings: list[Any] = []
    for layer in value.layers:
        if type(layer) is module.DynamicSlidingWindowLayer:
            settings.append([layer.sliding_window, layer.cumulative_length])
        elif type(layer) is module.DynamicLayer:
            settings.append(None)
        else:
            return None
    return "cache", [[layer.keys, layer.values] for layer in value.layers], settings


def _cache(kind: str, parts: list[Any], settings: list[Any]) -> Any:
    """The cache again; without transformers its parts as plain tuples."""
    try:
        from transformers import cache_utils
    except ImportError:
        return tuple(tuple(p) for p in parts)
    if kind == "caches":
        return cache_utils.EncoderDecoderCache(*parts)
    cache = cache_utils.DynamicCache()
    for (keys, values), window in zip(parts, settings, strict=True):
        if window is None:
            layer: Any = cache_utils.DynamicLayer()
        else:
            layer = cache_utils.DynamicSlidingWindowLayer(window[0])
            layer.cumulative_length = window[1]
        if keys is not None:
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
