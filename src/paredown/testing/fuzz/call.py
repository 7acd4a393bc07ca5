"""A recorded operator call: its name, tensors' shapes, whole numbers, and what it returned.

NeuRI's trace record (arXiv:2302.02261, section 3.1). A call is JSON: a template of its arguments in
which a tensor is ``{"t": i}`` and a whole number of zero or more ``{"i": i}``; everything else
(flags, floats, negative numbers, strings, dtypes) stands as it is and belongs to the signature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
"""The dtypes that a call may take and return."""
MOST = 1 << 16
"""Elements of the largest tensor that a call is tried with."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of one tensor."""

    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Call:
    """One call. ``outs`` are the tensors it returned, empty where it raised."""

    op: str
    args: Any
    kwargs: Any
    tensors: tuple[Spec, ...]
    ints: tuple[int, ...]
    outs: tuple[Spec, ...] = ()
    lists: tuple[tuple[int, ...], ...] | None = field(default=None, compare=False, repr=False)
    """Which whole numbers stand in a list together; found once per template."""

    def __post_init__(self) -> None:
        if self.lists is None:
            found = (*lists_of(self.args), *lists_of(self.kwargs))
            object.__setattr__(self, "lists", tuple(map(tuple, found)))

    def signature(self) -> str:
        """What calls of one partial operator share: all but sizes and whole numbers."""
        ranks = [(len(t.shape), t.dtype) for t in self.tensors]
        outs = [(len(t.shape), t.dtype) for t in self.outs]
        return json.dumps([self.op, self.args, self.kwargs, ranks, outs])

    def symbols(self) -> dict[str, int]:
        """Every number a rule may speak of: ``d0_1`` is a size, ``n0`` a count, ``i2`` an int.

        ``p3`` is the product of the list of whole numbers that begins at ``i3``.
        """
        found = {f"i{k}": v for k, v in enumerate(self.ints)}
        for k, t in enumerate(self.tensors):
            found.update({f"d{k}_{a}": n for a, n in enumerate(t.shape)})
        for k, t in enumerate(self.tensors):
            if len(t.shape) > 1:
                found[f"n{k}"] = prod(t.shape)
        for run in self.lists or ():
            found[f"p{run[0]}"] = prod(self.ints[k] for k in run)
        return found

    def free(self) -> dict[str, int]:
        """The symbols that a mutation may set, sizes and whole numbers, and their values."""
        return {s: v for s, v in self.symbols().items() if s[0] in "di"}

    def at(self, values: dict[str, int]) -> Call:
        """The call with other sizes and whole numbers, its outputs unknown."""
        ints = tuple(values.get(f"i{k}", v) for k, v in enumerate(self.ints))
        tensors = tuple(
            replace(t, shape=tuple(values.get(f"d{k}_{a}", n) for a, n in enumerate(t.shape)))
            for k, t in enumerate(self.tensors)
        )
        return replace(self, ints=ints, tensors=tensors, outs=())

    def fix(self, which: Sequence[int]) -> Call:
        """The call with some whole numbers made part of its signature."""
        keep = [k for k in range(len(self.ints)) if k not in which]
        place = {k: n for n, k in enumerate(keep)}

        def leaf(kind: str, k: int) -> Any:
            if kind == "t":
                return {"t": k}
            return {"i": place[k]} if k in place else self.ints[k]

        args, kwargs = fill(self.args, leaf), fill(self.kwargs, leaf)
        ints = tuple(self.ints[k] for k in keep)
        return replace(self, args=args, kwargs=kwargs, ints=ints, lists=None)

    def to_json(self) -> list[Any]:
        """The fields in order, short."""
        tensors = [[*t.shape, t.dtype] for t in self.tensors]
        outs = [[*t.shape, t.dtype] for t in self.outs]
        return [self.op, self.args, self.kwargs, tensors, list(self.ints), outs]

    @classmethod
    def of_json(cls, row: Sequence[Any]) -> Call:
        """A call from its fields."""
        op, args, kwargs, tensors, ints, outs = row

        def specs(rows: Any) -> tuple[Spec, ...]:
            return tuple(Spec(tuple(r[:-1]), r[-1]) for r in rows)

        return cls(op, args, kwargs, specs(tensors), tuple(ints), specs(outs))


def fill(template: Any, leaf: Callable[[str, int], Any]) -> Any:
    """A template with its tensor and number places filled by ``leaf(kind, index)``."""
    if isinstance(template, dict):
        if len(template) == 1:
            ((key, value),) = template.items()
            if key in ("t", "i") and isinstance(value, int):
                return leaf(key, value)
        return {k: fill(v, leaf) for k, v in template.items()}
    if isinstance(template, list):
        return [fill(v, leaf) for v in template]
    return template


def values_of(template: Any) -> Any:
    """A filled template as Python arguments: ``{"torch": "int64"}`` becomes ``torch.int64``."""
    if isinstance(template, dict):
        if set(template) == {"torch"}:
            return getattr(torch, template["torch"])
        return {k: values_of(v) for k, v in template.items()}
    if isinstance(template, list):
        return [values_of(v) for v in template]
    return template


def lists_of(arguments: Any) -> Iterator[list[int]]:
    """The lists of two or more whole numbers inside of arguments, as indices of ``ints``."""
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    for v in arguments if isinstance(arguments, (list, tuple)) else ():
        if isinstance(v, list):
            numbers = [x["i"] for x in v if isinstance(x, dict) and set(x) == {"i"}]
            if len(numbers) > 1:
                yield numbers
        if isinstance(v, (list, dict)):
            yield from lists_of(v)


@cache
def function(name: str) -> Callable[..., Any]:
    """The function behind a dotted name under ``torch``."""
    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def sample(spec: Spec, seed: int, positive: bool = False) -> torch.Tensor:
    """Random values: normal floats (or of 0.5 to 1.5), indices 0 and 1, coin flips."""
    g = torch.Generator().manual_seed(seed)
    if spec.dtype == "int64":
        return torch.randint(0, 2, spec.shape, generator=g)
    if spec.dtype == "bool":
        return torch.rand(spec.shape, generator=g) < 0.5
    if positive:
        return torch.rand(spec.shape, generator=g) + 0.5
    return torch.randn(spec.shape, generator=g)


def flat(out: Any) -> list[torch.Tensor] | None:
    """The tensors that a call returned; None where there is anything else."""
    items = list(out) if isinstance(out, (tuple, list)) else [out]
    return items if items and all(isinstance(t, torch.Tensor) for t in items) else None


def run(
    call: Call, seed: int = 0, positive: bool = False, noise: int = 0, whole: bool = False
) -> list[torch.Tensor] | None:
    """Call it on random values; None where torch refuses it or returns what no network can use.

    ``noise`` seeds the generator of a function that is random itself; ``whole`` rounds the values,
    so that some are zero and some are equal.
    """
    if any(prod(t.shape) > MOST or min(t.shape, default=1) < 1 for t in call.tensors):
        return None
    if any(v > MOST for v in call.ints):
        return None
    given = [sample(t, seed + k, positive) for k, t in enumerate(call.tensors)]

    given = [t.round() if whole and t.is_floating_point() else t for t in given]
    before = [t.clone() for t in given]

    def leaf(kind: str, k: int) -> Any:
        return given[k] if kind == "t" else call.ints[k]

    args = values_of(fill(call.args, leaf))
    kwargs = values_of(fill(call.kwargs, leaf))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            out = flat(function(call.op)(*args, **kwargs))
    except Exception:  # whatever torch raises, the call is invalid: that is the label
        return None
    if any(not torch.equal(a, b) for a, b in zip(given, before, strict=True)):
        return None  # it wrote into what it was given
    if out is None or any(str(t.dtype)[6:] not in DTYPES or t.numel() > MOST for t in out):
        return None
    return out


def label(call: Call, seed: int = 0, positive: bool = False) -> Call:
    """The call with the outputs that torch gives it, none where it is invalid.

    A call that returns an empty tensor counts as invalid: no network is grown through it.
    """
    out = run(call, seed, positive)
    if out is None or any(t.numel() == 0 for t in out):
        return replace(call, outs=())
    return replace(call, outs=tuple(Spec(tuple(t.shape), str(t.dtype)[6:]) for t in out))
