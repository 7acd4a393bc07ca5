"""In which order techniques are applied, and which pairs exclude each other.

Both follow from what a technique says of itself: ``stage`` orders, ``touches`` excludes. A network
can be cut, factored and trained any number of times, each step acting on what the last one left;
but one weight has one number format, one attention one hook, one step one plan. What that rule gets
wrong stands in `EXCEPTIONS`, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from paredown.technique import Change, Technique, Touches

Kind = Technique | type[Technique]
T = TypeVar("T", Technique, type[Technique])

EXCLUSIVE: frozenset[Touches] = frozenset(
    {
        Touches.WEIGHT_DTYPE,
        Touches.ACTIVATION_DTYPE,
        Touches.ATTENTION,
        Touches.CACHE,
        Touches.SAMPLER_STEP,
        Touches.EXIT,
        Touches.TRAIN_STEP,
        Touches.PLACEMENT,
        Touches.SCHEDULE,
    }
)
"""What can be changed once per site. Shapes, values, structure and data may change again."""

EXCEPTIONS: dict[frozenset[str], str] = {
    frozenset({"bf16", numeric}): "integers replace the weights, bfloat16 stays around them"
    for numeric in (
        "accllm",
        "static-int8",
        "dynamic-int8",
        "llm-int8",
        "mst-bnn",
        "nf4",
        "qfx",
        "qlora",
        "quantized-distillation",
        "repquant",
        "weight-only",
    )
}
"""Pairs that the rule would exclude but that work together, and why."""

CONFLICTS: dict[frozenset[str], str] = {
    frozenset({"low-rank", "one-shot-pruning"}): "a pruned matrix's factors are dense",
    frozenset({"trained-low-rank", "one-shot-pruning"}): "a pruned matrix's factors are dense",
    frozenset({"low-rank", "block-pruning"}): "a pruned matrix's factors are dense",
    frozenset({"trained-low-rank", "block-pruning"}): "a pruned matrix's factors are dense",
    frozenset({"trained-low-rank", "nm-training"}): "a pruned matrix's factors are dense",
    frozenset({"low-rank", "nm-training"}): "a pruned matrix's factors are dense",
    frozenset({"nm-training", "block-pruning"}): "one chooses zeros without the other's",
    frozenset({"nm-training", "one-shot-pruning"}): "one chooses zeros without the other's",
    frozenset({"block-pruning", "one-shot-pruning"}): "one chooses zeros without the other's",
}
"""Pairs that the rule would let act at one site but that undo each other, and why."""


def ordered(steps: Iterable[T]) -> list[T]:
    """Techniques in the order of their stages; equal stages keep their order."""
    return sorted(steps, key=lambda t: t.stage)


def conflict(a: Kind, b: Kind, site: str) -> str | None:
    """Why two techniques cannot both act at one site, in one line, or None."""
    undone = CONFLICTS.get(frozenset({a.name, b.name}))
    if undone is not None:
        return f"{a.name} and {b.name} at {site or 'the model'}: {undone}"
    if Touches.EXIT in a.touches and b.stage < a.stage:
        return f"{a.name} comes after {b.name}, which would not see the inputs that leave early"
    if Touches.SCHEDULE in a.touches and b.stage < a.stage:
        return f"{a.name} comes after {b.name}: a schedule holds the layers that it runs"
    both = a.touches & b.touches & EXCLUSIVE
    if not both or frozenset({a.name, b.name}) in EXCEPTIONS:
        return None
    what = " and ".join(sorted(t.value.replace("_", " ") for t in both))
    if a.name == b.name:
        return f"{a.name} acts twice on the {what} of {site or 'the model'}"
    return f"{a.name} and {b.name} both set the {what} of {site or 'the model'}"


def same_place(a: str, b: str) -> bool:
    """Whether two sites name the same module; the root (``:role``) is everywhere."""
    first, second = a.partition(":")[0], b.partition(":")[0]
    return first == second or not first or not second


def clash(
    changes: Sequence[tuple[Kind, Change]], technique: Kind, sites: Iterable[str]
) -> str | None:
    """The first conflict of a technique at ``sites`` with what earlier changes touched, or None."""
    wanted = list(sites)
    for earlier, change in changes:
        for done in change.touched:
            for site in wanted:
                if same_place(done, site):
                    why = conflict(earlier, technique, site)
                    if why is not None:
                        return why
    return None
