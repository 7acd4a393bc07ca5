"""Sizes and attributes that satisfy a partial operator's rules: search by least conflict.

NeuRI hands the constraints to an SMT solver (arXiv:2302.02261, section 3.4). Deviation: numbers are
small here, so a local search from a recorded call finds them: it changes one number at a time, to
the value that breaks the fewest conditions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from paredown.testing.fuzz.call import Call, Shape, Spec
from paredown.testing.fuzz.partial import PartialOperator

STEPS = 40
COMMON = (1, 2, 3, 4, 6, 8)


def solve(
    operator: PartialOperator,
    call: Call,
    fixed: Mapping[str, int],
    rng: random.Random,
    goal: tuple[int, Shape] | None = None,
) -> Call | None:
    """A call at sizes that the rules allow, ``fixed`` ones kept; None where none was found.

    ``goal`` asks that output ``goal[0]`` have the shape ``goal[1]`` (backward insertion).
    """
    values = call.free()
    free = [s for s in values if s not in fixed]
    values.update(fixed)
    wrong = _conflicts(operator, call, values, goal)
    for _ in range(STEPS):
        if wrong == 0:
            return _whole(operator, call, values)
        if not free:
            return None
        name = rng.choice(free)
        around = {values[name] + 1, values[name] - 1, *COMMON, *values.values()}
        options = [v for v in around if v >= (0 if name[0] == "i" else 1)]
        rng.shuffle(options)
        scores = [(_conflicts(operator, call, {**values, name: v}, goal), v) for v in options]
        best, value = min(scores, key=lambda s: s[0])
        if best <= wrong:
            values[name], wrong = value, best
    return _whole(operator, call, values) if wrong == 0 else None


def _conflicts(
    operator: PartialOperator,
    call: Call,
    values: Mapping[str, int],
    goal: tuple[int, Shape] | None,
) -> int:
    symbols = call.at(dict(values)).symbols()
    wrong = operator.violated(symbols)
    try:
        shapes = operator.shapes(symbols)
    except ZeroDivisionError:
        return wrong + 1
    wrong += sum(n < 1 for shape in shapes for n in shape)
    if goal is not None:
        which, shape = goal
        wrong += sum(a != b for a, b in zip(shapes[which], shape, strict=True))
    return wrong


def _whole(operator: PartialOperator, call: Call, values: Mapping[str, int]) -> Call:
    """The call with the outputs that the rules predict."""
    found = call.at(dict(values))
    shapes = operator.shapes(found.symbols())
    outs = tuple(Spec(shape, spec.dtype) for shape, spec in zip(shapes, call.outs, strict=True))
    return replace(found, outs=outs)
