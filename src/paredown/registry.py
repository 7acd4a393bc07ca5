"""Every technique by name: ours from a table of modules, a third party's from entry points."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from paredown.errors import RecipeError, UnknownName
from paredown.technique import Technique

GROUP = "paredown.techniques"

# name -> module:class. The manifest (`techniques/manifest.json`, read without torch) is made of it.
BUILT_IN = {
    "fold-norm": "paredown.techniques.quantize.fold_norm:FoldNorm",
    "bf16": "paredown.techniques.quantize.bf16:BF16",
    "static-int8": "paredown.techniques.quantize.static_int8:StaticInt8",
    "dynamic-int8": "paredown.techniques.quantize.dynamic_int8:DynamicInt8",
    "accllm": "paredown.techniques.quantize.accllm:AccLLM",
    "llm-int8": "paredown.techniques.quantize.llm_int8:LLMInt8",
    "nf4": "paredown.techniques.quantize.nf4:NF4",
    "qlora": "paredown.techniques.quantize.qlora:QLoRA",
    "quantized-distillation": (
        "paredown.techniques.quantize.quantized_distillation:QuantizedDistillation"
    ),
    "mst-bnn": "paredown.techniques.quantize.mst_bnn:MSTBNN",
    "qfx": "paredown.techniques.quantize.qfx:QFX",
    "repquant": "paredown.techniques.quantize.repquant:RepQuant",
    "weight-only": "paredown.techniques.quantize.weight_only:WeightOnly",
    "structured-pruning": "paredown.techniques.sparsify.structured:StructuredPruning",
    "block-pruning": "paredown.techniques.sparsify.block_pruning:BlockPruning",
    "nm-training": "paredown.techniques.sparsify.nm_training:NMTraining",
    "consensus": "paredown.techniques.sparsify.consensus:Consensus",
    "one-shot-pruning": "paredown.techniques.sparsify.one_shot:OneShotPruning",
    "token-merging": "paredown.techniques.tokens.merging:TokenMerging",
    "token-propagation": "paredown.techniques.tokens.propagation:TokenPropagation",
    "patches": "paredown.techniques.schedule.patches:Patches",
    "early-exit": "paredown.techniques.adaptive.early_exit:EarlyExit",
    "hard-to-easy": "paredown.techniques.adaptive.conversion:HardToEasy",
    "result-memory": "paredown.techniques.adaptive.memory:ResultMemory",
    "adaptive-computation": "paredown.techniques.adaptive.computation:AdaptiveComputation",
    "low-rank": "paredown.techniques.factorize.low_rank:LowRank",
    "trained-low-rank": "paredown.techniques.factorize.trained_low_rank:TrainedLowRank",
    "recover": "paredown.techniques.distill.recover:Recover",
    "cross-distillation": "paredown.techniques.distill.cross:CrossDistillation",
}


def names() -> list[str]:
    """Every technique's name, ours first; loads none of them."""
    return [*BUILT_IN, *(e.name for e in entry_points(group=GROUP))]


def classes() -> dict[str, type[Technique]]:
    """Every technique class by name; ``RecipeError`` for a broken third-party entry point."""
    return {name: technique(name) for name in names()}


@cache
def technique(name: str) -> type[Technique]:
    """A technique class by name; raises ``UnknownName`` with the nearest names."""
    if name in BUILT_IN:
        module, _, cls = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), cls)
    for entry in entry_points(group=GROUP, name=name):
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Technique)):
            raise RecipeError(f"entry point {entry.name!r} of {entry.value} is not a Technique")
        return found
    raise UnknownName("technique", name, names())


def make(name: str, settings: dict[str, object] | None = None) -> Technique:
    """A technique from recipe settings; ``RecipeError`` for an unknown key or a bad value."""
    cls = technique(name)
    knobs = {k.name: k for k in cls.knobs()}
    for key in settings or {}:
        if key not in knobs:
            raise RecipeError(f"{name} has no setting {key!r}; it has {', '.join(knobs) or 'none'}")
    try:
        return cls(**(settings or {}))  # type: ignore[arg-type]
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {e}") from None
