"""Growing a network call by call: forward and backward, from rules and from recorded calls.

NeuRI, section 3.4 (arXiv:2302.02261). *Forward* takes tensors that are there; *backward* makes an
input of the network the output of a new call. A *symbolic* call takes its numbers from the rules,
a *concrete* one is a recorded call whose shapes happen to fit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import prod
from typing import Any

from paredown.testing.fuzz.call import Call, Spec, fill
from paredown.testing.fuzz.layers import weighted
from paredown.testing.fuzz.partial import PartialOperator, operators
from paredown.testing.fuzz.program import Program, Step
from paredown.testing.fuzz.solve import solve

LARGEST = 1 << 13
"""Elements of the largest tensor of a network."""
LAYERS = 0.4
"""Share of insertions that look for a layer with weights, on which rewrites act."""
_GUARD = "torch.nn.functional.softplus"


def grow(seed: int, size: int = 8, among: Sequence[PartialOperator] | None = None) -> Program:
    """A program of about ``size`` calls; the same for one seed and one set of operators.

    Nothing is run: that the result is valid is the rules' claim.
    """
    rng = random.Random(seed)
    pool = _Pool(operators() if among is None else among)
    found = _Draft(rng)
    tries = 0
    while len(found.steps) < size and tries < 12 * size:
        tries += 1
        way = rng.random()
        if not found.known or way < 0.1:
            found.concrete(pool.any(rng), fresh=True)
        elif way < 0.3:
            found.concrete(pool.any(rng), fresh=False)
        elif way < 0.5:
            found.backward(pool.symbolic(rng))
        else:
            found.forward(pool.symbolic(rng))
    return Program(found.inputs, tuple(found.steps))


class _Pool:
    """Operators by function, so that one with many signatures is not drawn more often."""

    def __init__(self, among: Sequence[PartialOperator]) -> None:
        self.all: dict[str, list[PartialOperator]] = {}
        self.ruled: dict[str, list[PartialOperator]] = {}
        for p in among:
            self.all.setdefault(p.op, []).append(p)
            if p.rules is not None:
                self.ruled.setdefault(p.op, []).append(p)

    def any(self, rng: random.Random) -> PartialOperator:
        """A signature of a random function."""
        return self._draw(self.all, rng)

    def symbolic(self, rng: random.Random) -> PartialOperator:
        """One that has rules."""
        return self._draw(self.ruled, rng)

    def _draw(self, table: dict[str, list[PartialOperator]], rng: random.Random) -> PartialOperator:
        layers = [op for op in table if weighted(op)]
        names = layers if layers and rng.random() < LAYERS else list(table)
        return rng.choice(table[rng.choice(names)])


class _Draft:
    """A program in the making."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.inputs: dict[int, Spec] = {}
        self.steps: list[Step] = []
        self.known: dict[int, Spec] = {}
        self.count = 0

    def forward(self, operator: PartialOperator) -> bool:
        """Insert a symbolic call that reads at least one tensor that is there."""
        call = self.rng.choice(operator.calls)
        chosen: dict[int, int] = {}
        for k, spec in enumerate(call.tensors):
            if k and (weighted(call.op) or self.rng.random() < 0.3):
                continue
            fits = [v for v, t in self.known.items() if _alike(t, spec)]
            if fits:
                chosen[k] = self.rng.choice(fits[-6:])
            elif k == 0:
                return False
        fixed = {
            f"d{k}_{a}": n for k, v in chosen.items() for a, n in enumerate(self.known[v].shape)
        }
        found = solve(operator, call, fixed, self.rng)
        return found is not None and self._append(operator, found, chosen)

    def backward(self, operator: PartialOperator) -> bool:
        """Make an input of the network an output of a new call."""
        call = self.rng.choice(operator.calls)
        which = self.rng.randrange(len(call.outs))
        fits = [v for v, t in self.inputs.items() if _alike(t, call.outs[which])]
        if not fits:
            return False
        target = self.rng.choice(fits)
        goal = (which, self.inputs[target].shape)
        found = solve(operator, call, {}, self.rng, goal)
        if found is None or _large(found):
            return False
        del self.inputs[target]
        later, self.steps = self.steps, []
        self._append(operator, found, {}, {which: target})
        self.steps += later
        return True

    def concrete(self, operator: PartialOperator, *, fresh: bool) -> bool:
        """Insert a recorded call as it is; unless ``fresh`` its first tensor must be there."""
        call = self.rng.choice(operator.calls)
        chosen: dict[int, int] = {}
        for k, spec in enumerate(call.tensors):
            if k and weighted(call.op):
                break
            fits = [v for v, t in self.known.items() if t == spec]
            if fits and not (fresh and k == 0):
                chosen[k] = self.rng.choice(fits)
            elif k == 0 and not fresh:
                return False
        return self._append(operator, call, chosen)

    def _append(
        self,
        operator: PartialOperator,
        call: Call,
        chosen: dict[int, int],
        makes: dict[int, int] | None = None,
    ) -> bool:
        """Write the call down: tensors not chosen become weights of its own or inputs."""
        if _large(call):
            return False
        place: dict[int, dict[str, int]] = {}
        weights: list[Spec] = []
        for k, spec in enumerate(call.tensors):
            if k in chosen:
                place[k] = {"v": self._guarded(chosen[k], operator)}
            elif k and (weighted(call.op) or self.rng.random() < 0.5) and not operator.positive:
                weights.append(spec)
                place[k] = {"w": len(weights) - 1}
            else:
                new = self._new(spec)
                self.inputs[new] = spec
                place[k] = {"v": self._guarded(new, operator)}

        def leaf(kind: str, k: int) -> Any:
            return place[k] if kind == "t" else call.ints[k]

        made = makes or {}
        outs = tuple(made[n] if n in made else self._new(spec) for n, spec in enumerate(call.outs))
        args, kwargs = fill(call.args, leaf), fill(call.kwargs, leaf)
        self.steps.append(Step(call.op, args, kwargs, tuple(weights), outs, call.outs))
        return True

    def _new(self, spec: Spec) -> int:
        self.known[self.count] = spec
        self.count += 1
        return self.count - 1

    def _guarded(self, value: int, operator: PartialOperator) -> int:
        """The value, behind a softplus where the operator wants numbers above zero."""
        spec = self.known[value]
        if not operator.positive or spec.dtype != "float32":
            return value
        new = self._new(spec)
        self.steps.append(Step(_GUARD, [{"v": value}], {}, (), (new,), (spec,)))
        return new


def _alike(a: Spec, b: Spec) -> bool:
    return a.dtype == b.dtype and len(a.shape) == len(b.shape)


def _large(call: Call) -> bool:
    return any(prod(t.shape) > LARGEST for t in (*call.tensors, *call.outs))
