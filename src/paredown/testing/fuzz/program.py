"""A generated network as a list of calls, and the module that runs it.

A program is JSON, so that a finding is a few lines in a test. Values are numbered; a call's
template holds ``{"v": 3}`` for a value, ``{"w": 0}`` for a weight of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paredown.testing.fuzz.call import Spec, flat, function, sample, values_of
from paredown.testing.fuzz.layers import layer
from paredown.workload import TrainingData, Workload


@dataclass(frozen=True)
class Step:
    """One call: ``weights`` are tensors of its own, ``outs`` the values it makes, as ``made``."""

    op: str
    args: list[Any]
    kwargs: dict[str, Any]
    weights: tuple[Spec, ...]
    outs: tuple[int, ...]
    made: tuple[Spec, ...]

    def reads(self) -> list[int]:
        """The values it takes, in order."""
        return list(_values((self.args, self.kwargs)))


@dataclass(frozen=True)
class Program:
    """Inputs by value number, calls in order; every value that nobody reads is an output."""

    inputs: dict[int, Spec] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    @property
    def outputs(self) -> list[int]:
        """Values made and never read."""
        read = {v for s in self.steps for v in s.reads()}
        return [v for s in self.steps for v in s.outs if v not in read]

    def dumps(self) -> str:
        """One line of JSON."""
        steps = [
            [s.op, s.args, s.kwargs, _rows(s.weights), list(s.outs), _rows(s.made)]
            for s in self.steps
        ]
        inputs = {str(v): [*t.shape, t.dtype] for v, t in self.inputs.items()}
        return json.dumps({"inputs": inputs, "steps": steps})

    @classmethod
    def loads(cls, text: str) -> Program:
        """A program from its JSON."""
        said = json.loads(text)

        def spec(row: list[Any]) -> Spec:
            return Spec(tuple(row[:-1]), row[-1])

        steps = tuple(
            Step(op, args, kwargs, tuple(map(spec, own)), tuple(outs), tuple(map(spec, made)))
            for op, args, kwargs, own, outs, made in said["steps"]
        )
        return cls({int(v): spec(t) for v, t in said["inputs"].items()}, steps)


class Network(nn.Module):
    """Runs a program. Layers and weights are seeded and spread like trained ones."""

    def __init__(self, program: Program, seed: int = 0) -> None:
        super().__init__()
        self.steps, self.outputs = program.steps, program.outputs
        self.names = list(program.inputs)
        self.layers = nn.ModuleDict()
        self.weights = nn.ParameterDict()
        shapes = dict(program.inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for n, step in enumerate(self.steps):
                self._add(n, step, shapes)
                shapes.update(zip(step.outs, step.made, strict=True))
        self.eval()

    def _add(self, n: int, step: Step, shapes: dict[int, Spec]) -> None:
        def leaf(kind: str, k: int) -> Any:
            return step.weights[k] if kind == "w" else shapes[k]

        made = layer(step.op, _filled(step.args, leaf), _filled(step.kwargs, leaf))
        if made is not None:
            _spread(made)
            self.layers[f"n{n}"] = made
            return
        for k, w in enumerate(step.weights):
            value = sample(w, 100 * n + k)
            if w.dtype == "float32":
                fan = w.shape[-1] if len(w.shape) > 1 else 1
                self.weights[f"n{n}w{k}"] = nn.Parameter(value / fan**0.5)
            else:
                self.register_buffer(f"n{n}w{k}", value)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run every call; returns the values that nothing reads."""
        values: dict[int, Tensor] = dict(zip(self.names, inputs, strict=True))
        for n, step in enumerate(self.steps):
            if f"n{n}" in self.layers:
                made: Any = self.layers[f"n{n}"](values[step.reads()[0]])
            else:
                made = self._call(n, step, values)
            for v, t in zip(step.outs, flat(made) or [], strict=True):
                values[v] = t
        return tuple(values[v] for v in self.outputs)

    def _call(self, n: int, step: Step, values: dict[int, Tensor]) -> Any:
        def leaf(kind: str, k: int) -> Any:
            if kind == "v":
                return values[k]
            name = f"n{n}w{k}"
            return self.weights[name] if name in self.weights else getattr(self, name)

        args = values_of(_filled(step.args, leaf))
        return function(step.op)(*args, **values_of(_filled(step.kwargs, leaf)))


def network(program: Program, seed: int = 0, name: str = "fuzzed") -> Workload:
    """A workload of a program: seeded weights and inputs, three batches, itself as teacher."""
    model = Network(program, seed)
    batches = [
        tuple(sample(t, seed + 1000 * (b + 1) + v) for v, t in program.inputs.items())
        for b in range(3)
    ]

    def loss(out: Any, target: Any) -> Tensor:
        floats = [(a, b) for a, b in zip(out, target, strict=True) if a.is_floating_point()]
        return torch.stack([(a - b).square().mean() for a, b in floats]).sum()

    def pairs() -> list[tuple[tuple[Any, ...], Any]]:
        with torch.no_grad():
            return [(b, model(*b)) for b in batches]

    kinds = {v: t.dtype for s in program.steps for v, t in zip(s.outs, s.made, strict=True)}
    teaches = any(kinds[v] == "float32" for v in program.outputs)
    return Workload(
        model,
        batches[0],
        name=name,
        calibration=batches,
        training=TrainingData(pairs, loss) if teaches else None,
        original=model,
    )


def _rows(specs: tuple[Spec, ...]) -> list[list[Any]]:
    return [[*t.shape, t.dtype] for t in specs]


def _filled(template: Any, leaf: Any) -> Any:
    if isinstance(template, dict):
        if len(template) == 1:
            ((key, value),) = template.items()
            if key in ("v", "w") and isinstance(value, int):
                return leaf(key, value)
        return {k: _filled(v, leaf) for k, v in template.items()}
    if isinstance(template, (list, tuple)):
        return [_filled(v, leaf) for v in template]
    return template


def _values(template: Any) -> Any:
    if isinstance(template, dict):
        if set(template) == {"v"}:
            yield template["v"]
            return
        template = list(template.values())
    if isinstance(template, (list, tuple)):
        for v in template:
            yield from _values(v)


def _spread(made: nn.Module) -> None:
    """Statistics and scales that are not one and zero, as a trained network has them."""
    for name, t in (*made.named_parameters(), *made.named_buffers()):
        if "mean" in name or (name == "bias" and "Norm" in type(made).__name__):
            nn.init.uniform_(t, -0.3, 0.3)
        elif "var" in name or (name == "weight" and "Norm" in type(made).__name__):
            nn.init.uniform_(t, 0.7, 1.3)
