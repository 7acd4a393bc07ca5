"""Learning partial operators: recorded calls, calls around them, rules, and counterexamples.

NeuRI, sections 3.1 to 3.3 (arXiv:2302.02261). A function is learned at the widest signature whose
output sizes have expressions: with every whole number a symbol, else with those that look like axes
fixed to their values, else with all fixed.

Deviation: rules are refined by counterexample. Calls drawn from the rules are tried with torch, and
those that it refuses are learned from too.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from paredown.testing.fuzz.call import MOST, Call, label, run
from paredown.testing.fuzz.infer import Labelled, Rules, infer
from paredown.testing.fuzz.mutate import around, smaller
from paredown.testing.fuzz.partial import PartialOperator
from paredown.testing.fuzz.solve import solve

ENOUGH = 8
"""Valid calls below which nothing is inferred."""
MUTATIONS = 150
ROUNDS, DRAWN = 4, 24
"""Rounds of counterexamples, calls drawn from the rules in each."""
PRECISE = 0.9
"""Share of calls drawn from the final rules that torch must take."""
KEPT = 6
WIDEST = 3
"""Signatures learned per function and rung: those with most recorded calls."""


def usable(call: Call) -> tuple[Call, bool] | None:
    """A recorded call at small sizes that a network may hold, and whether it needs inputs > 0.

    None for one that is random, changes its input, has shapes that follow the data, or is not
    finite on ordinary numbers.
    """
    small = smaller(call)
    if small is None or not any(t.dtype == "float32" for t in (*small.tensors,)):
        return None
    for positive in (False, True):
        again = [run(small, seed, positive, noise) for seed, noise in ((0, 0), (0, 7), (1, 0))]
        if any(a is None for a in again):
            return None
        first, same, other = (a or [] for a in again)
        rounded = run(small, 2, positive, whole=True) or []
        shapes = {tuple(t.shape for t in out) for out in (first, other, rounded)}
        if len(shapes) > 1:
            return None
        if not all(torch.equal(a, b) for a, b in zip(first, same, strict=True)):
            finite = all(bool(torch.isfinite(t).all()) for t in first)
            if finite:
                return None  # random, or it read memory that nothing was written to
            continue
        if all(bool(torch.isfinite(t).all()) for t in (*first, *other) if t.is_floating_point()):
            return label(small, positive=positive), positive
    return None


def learn(calls: Iterable[Call], seed: int = 0) -> list[PartialOperator]:
    """Partial operators of one function from its usable calls."""
    by_need: dict[bool, list[Call]] = defaultdict(list)
    for call in calls:
        found = usable(call)
        if found is not None:
            by_need[found[1]].append(found[0])
    learned: list[PartialOperator] = []
    for positive, group in by_need.items():
        for part in grouped(group, lambda c: [])[:WIDEST]:
            learned += _rung(part, positive, seed, (axes, every))
    return learned


def _rung(
    group: list[Call],
    positive: bool,
    seed: int,
    narrower: Sequence[Callable[[Call], list[int]]],
) -> list[PartialOperator]:
    """Learn one signature; where no rules hold, its parts with more numbers fixed."""
    rows = around(group, MUTATIONS, seed, positive)
    rules = refined(rows, group, positive, seed)
    if rules is None and narrower:
        fix, *rest = narrower
        if any(fix(c) for c in group):
            parts = grouped(group, fix)[:WIDEST]
            return [p for part in parts for p in _rung(part, positive, seed, rest)]
        return _rung(group, positive, seed, rest) if rest else _plain(group, positive, len(rows))
    return [PartialOperator(tuple(group[:KEPT]), rules, positive, len(rows))]


def _plain(group: list[Call], positive: bool, tried: int) -> list[PartialOperator]:
    return [PartialOperator(tuple(group[:KEPT]), None, positive, tried)]


def refined(rows: list[Labelled], group: Sequence[Call], positive: bool, seed: int) -> Rules | None:
    """Rules of labelled calls, learned again with their counterexamples until there are few.

    ``rows`` grow. None where no rules fit, or torch goes on refusing what they allow.
    """
    if sum(bool(r.call.outs) for r in rows) < ENOUGH:
        return None
    rules, rng = infer(rows), random.Random(seed)
    for left in reversed(range(ROUNDS)):
        if rules is None:
            return None
        drawn = draw(PartialOperator(tuple(group), rules), DRAWN, rng)
        tried = [label(replace(c, outs=()), positive=positive) for c in drawn]
        wrong = [n for n, t in enumerate(tried) if t.outs != drawn[n].outs]
        rows += [
            Labelled(t, -1)
            for t in tried
            if not t.outs or [len(o.shape) for o in t.outs] == [len(o.shape) for o in drawn[0].outs]
        ]
        if not left or not wrong:
            return rules if len(wrong) <= (1 - PRECISE) * len(drawn) else None
        rules = infer(rows)
    return rules


def draw(operator: PartialOperator, count: int, rng: random.Random) -> list[Call]:
    """Calls that the rules allow, at sizes as the growing of networks asks for them.

    The first tensor, or none, is given; the outputs are those that the rules predict.
    """
    found: list[Call] = []
    for n in range(2 * count):
        call = rng.choice(operator.calls)
        rank = len(call.tensors[0].shape)
        given = {f"d0_{a}": rng.choice((1, 2, 3, 4, 5, 6, 8, 9)) for a in range(rank)}
        made = solve(operator, call, given if n % 2 else {}, rng)
        if made is not None and max(made.symbols().values()) <= MOST:
            found.append(made)
        if len(found) == count:
            break
    return found


def grouped(calls: Iterable[Call], fix: Callable[[Call], list[int]]) -> list[list[Call]]:
    """Calls by signature once ``fix(call)`` has named the numbers that belong to it."""
    groups: dict[str, list[Call]] = defaultdict(list)
    for c in calls:
        fixed = c.fix(fix(c))
        groups[fixed.signature()].append(fixed)
    return sorted(groups.values(), key=len, reverse=True)


def axes(call: Call) -> list[int]:
    """Whole numbers that could be an axis: below the largest rank."""
    rank = max(len(t.shape) for t in call.tensors)
    return [k for k, v in enumerate(call.ints) if v < max(rank, 2)]


def every(call: Call) -> list[int]:
    """All whole numbers."""
    return list(range(len(call.ints)))
