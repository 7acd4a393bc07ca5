"""Every technique by name: ours from a table of modules, a third party's from entry points."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from paredown.errors import RecipeError, UnknownName
from paredown.technique import Technique

GROUP = "paredown.techniques"

# name -> module:class. The manifest (`techniques/manifest.json`, listed without torch) is made of it.
BUILT_IN = {
    "fold-norm": "paredown.techniques.quantize.fold_norm:FoldNorm",
    "bf16": "paredown.techniques.quantize.bf16:BF16",
    "static-int8": "paredown.techniques.quantize.static_int8:StaticInt8",
    "dynamic-int8": "paredown.techniques.quantize.dynamic_int8:DynamicInt8",
    "weight-only": "paredown.techniques.quantize.weight_only:WeightOnly",
    "structured-pruning": "paredown.techniques.sparsify.structured:StructuredPruning",
    "low-rank": "paredown.techniques.factorize.low_rank:LowRank",
    "recover": "paredown.techniques.distill.recover:Recover",
}


@cache
def classes() -> dict[str, type[Technique]]:
    """Every technique class by name. Raises ``RecipeError`` for a broken third-party entry point."""
    found: dict[str, type[Technique]] = {}
    for name, where in BUILT_IN.items():
        module, _, cls = where.partition(":")
        found[name] = getattr(importlib.import_module(module), cls)
    for entry in entry_points(group=GROUP):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Technique)):
            raise RecipeError(f"entry point {entry.name!r} of {entry.value} is not a Technique")
        found[entry.name] = cls
    return found


def technique(name: str) -> type[Technique]:
    """A technique class by name; raises ``UnknownName`` with the nearest names."""
    known = classes()
    if name not in known:
        raise UnknownName("technique", name, list(known))
    return known[name]


def make(name: str, settings: dict[str, object] | None = None) -> Technique:
    """A technique from recipe settings; raises ``RecipeError`` for an unknown key or a bad value."""
    cls = technique(name)
    knobs = {k.name: k for k in cls.knobs()}
    for key in settings or {}:
        if key not in knobs:
            raise RecipeError(f"{name} has no setting {key!r}; it has {', '.join(knobs) or 'none'}")
    try:
        return cls(**(settings or {}))  # type: ignore[arg-type]
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {e}") from None
