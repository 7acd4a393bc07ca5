"""What an operator computes, without how: stages over axes, in the manner of tensor expressions.

A stage gives every element of one tensor as an expression of its axes and, for a reduction, of
further axes that are summed over (or of which the largest is taken). An operator is a list of
stages, each reading inputs and earlier stages; so it is acyclic by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from paredown.errors import InputError
from paredown.kernels.loops.arithmetic import Arithmetic
from paredown.kernels.loops.expr import Binary, Expr, Load, Number, Var, walk, wrap

LOWEST = -3.0e38
"""Where a largest value starts: below every finite float that an operator is fed."""
ACCUMULATED = "acc"
"""The variable that ``Stage.finish`` reads: what was reduced."""
WHOLE = Var(ACCUMULATED)
COMBINE = {"sum": ("+", 0.0), "max": ("max", LOWEST)}
"""How a reduction combines, and what it starts from."""


@dataclass(frozen=True)
class Tensor:
    """A name and a shape of 32-bit floats; ``t[i, j]`` is the expression of an element."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    def __getitem__(self, index: Any) -> Load:
        """The element at the given expressions, one per axis."""
        given = index if isinstance(index, tuple) else (index,)
        if len(given) != len(self.shape):
            raise InputError(f"{self.name} has {len(self.shape)} axes, not {len(given)}")
        return Load(self.name, tuple(wrap(i) for i in given))


@dataclass(frozen=True)
class Stage:
    """``tensor[axes] = value``, combined over the axes of ``reduce``, then ``finish`` of it."""

    tensor: Tensor
    axes: tuple[str, ...]
    value: Expr
    reduce: tuple[tuple[str, int], ...] = ()
    combine: str | None = None
    finish: Expr = WHOLE

    @property
    def name(self) -> str:
        """That of its tensor."""
        return self.tensor.name

    @property
    def extents(self) -> dict[str, int]:
        """All axes, data first."""
        return {**dict(zip(self.axes, self.tensor.shape, strict=True)), **dict(self.reduce)}

    def reads(self) -> set[str]:
        """Names of the tensors it reads."""
        return {
            e.buffer
            for part in (self.value, self.finish)
            for e in walk(part)
            if isinstance(e, Load)
        }


@dataclass(frozen=True)
class Operator:
    """Inputs, stages in order, and which tensors of stages are its results."""

    name: str
    inputs: tuple[Tensor, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        known = {t.name for t in self.inputs}
        for s in self.stages:
            unknown = s.reads() - known
            if unknown or s.name in known:
                fault = f"reads {', '.join(sorted(unknown))} before" if unknown else "comes twice"
                raise InputError(f"{self.name}: stage {s.name} {fault}")
            known.add(s.name)
        if not set(self.outputs) <= {s.name for s in self.stages}:
            raise InputError(f"{self.name}: an output is no stage: {', '.join(self.outputs)}")

    def stage(self, name: str) -> Stage:
        """A stage by its tensor's name; raises ``InputError``."""
        for s in self.stages:
            if s.name == name:
                return s
        raise InputError(f"{self.name} has no stage {name!r}: {', '.join(self.tensors())}")

    def tensors(self) -> dict[str, Tensor]:
        """Inputs and stages' tensors by name."""
        return {t.name: t for t in (*self.inputs, *(s.tensor for s in self.stages))}

    def readers(self, name: str) -> list[Stage]:
        """Stages that read a tensor."""
        return [s for s in self.stages if name in s.reads()]

    def floating(self) -> int:
        """Elements that its stages compute, reductions counted at every step."""
        return sum(prod(s.extents.values()) for s in self.stages)


class Builder:
    """Makes an operator stage by stage."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: list[Tensor] = []
        self._stages: list[Stage] = []

    def input(self, name: str, *shape: int) -> Tensor:
        """An input."""
        self._inputs.append(Tensor(name, tuple(shape)))
        return self._inputs[-1]

    def each(self, shape: Sequence[int], value: Callable[..., Expr | Number]) -> Tensor:
        """A stage without reduction: ``value(*axes)``."""
        return self.over(shape, (), value, None)

    def over(
        self,
        shape: Sequence[int],
        reduce: Sequence[int],
        value: Callable[..., Expr | Number],
        combine: str | None = "sum",
        finish: Callable[[Expr], Expr] = lambda x: x,
    ) -> Tensor:
        """A stage that combines ``value(*axes, *reduced)`` and gives ``finish`` of the result."""
        if combine is not None and combine not in COMBINE:
            raise InputError(f"no reduction {combine!r}; there are: {', '.join(COMBINE)}")
        axes = tuple(f"i{n}" for n in range(len(shape)))
        reduced = tuple((f"r{n}", extent) for n, extent in enumerate(reduce))
        tensor = Tensor(f"t{len(self._stages)}", tuple(shape))
        variables = [Var(n) for n in (*axes, *(r for r, _ in reduced))]
        self._stages.append(
            Stage(tensor, axes, wrap(value(*variables)), reduced, combine if reduced else None,
                  finish(WHOLE))
        )  # fmt: skip
        return tensor

    def done(self, *outputs: Tensor) -> Operator:
        """The operator whose results are these, in order."""
        return Operator(
            self.name, tuple(self._inputs), tuple(self._stages), tuple(t.name for t in outputs)
        )


def evaluate(op: Operator, inputs: Sequence[Any]) -> list[Any]:
    """What an operator gives for NumPy arrays: stage by stage, no schedule. The truth for tests."""
    known = {t.name: np.asarray(a, np.float32) for t, a in zip(op.inputs, inputs, strict=True)}
    for name, array in known.items():
        if array.shape != op.tensors()[name].shape:
            raise InputError(f"{op.name}: {name} is {op.tensors()[name].shape}, not {array.shape}")
    for s in op.stages:
        extents = s.extents
        rank = len(extents)
        grid: dict[str, Any] = {
            axis: np.arange(n).reshape([-1 if i == at else 1 for i in range(rank)])
            for at, (axis, n) in enumerate(extents.items())
        }
        full = np.broadcast_to(_Grid(grid, known).value(s.value), tuple(extents.values()))
        over = tuple(range(len(s.axes), rank))
        if s.combine:
            full = full.sum(over) if s.combine == "sum" else full.max(over)
        data = {a: grid[a].reshape(grid[a].shape[: len(s.axes)]) for a in s.axes}
        done = _Grid({**data, ACCUMULATED: full}, known).value(s.finish)
        known[s.name] = np.array(np.broadcast_to(done, s.tensor.shape), np.float32, order="C")
    return [known[name] for name in op.outputs]


class _Grid(Arithmetic):
    """All elements of a stage at once: axes are arrays that broadcast against each other."""

    def __init__(self, variables: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
        self.variables, self.buffers = variables, buffers

    def variable(self, name: str) -> Any:
        """An axis, or what was reduced."""
        return self.variables[name]

    def element(self, load: Load, index: list[Any]) -> Any:
        """Elements; where a selection will not choose them, whatever lies nearest."""
        array = self.buffers[load.buffer]
        inside = [np.clip(i, 0, n - 1) for i, n in zip(index, array.shape, strict=True)]
        return array[tuple(np.broadcast_arrays(*inside))]


def identity(load: Load, axes: Sequence[str]) -> bool:
    """Whether an element is read at exactly these axes."""
    return load.index == tuple(Var(a) for a in axes)


def combined(s: Stage, old: Expr, new: Expr) -> Expr:
    """One step of a stage's reduction."""
    return Binary(COMBINE[s.combine or "sum"][0], old, new)
