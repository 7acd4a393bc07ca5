"""Rules of a partial operator from labelled calls: output sizes, and when a call is valid.

NeuRI, sections 3.2 and 3.3 (arXiv:2302.02261). An output size is an expression that fits every
valid call. Constraints are ``e == 0``, ``e >= 0``, ``a % b == 0`` and "one of two is zero", true of
every valid call; a greedy cover keeps those that part it from the invalid ones.

Deviation: sums and windows are met in the middle instead of by blind enumeration, the symbols that
an output depends on are read off calls that differ in few of them, and the constraints are chosen
by greedy cover instead of by subsumption.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paredown.testing.fuzz.call import Call
from paredown.testing.fuzz.expressions import Rows, Term, compiled, grown, leaves, search

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """A call with its outputs (none: invalid) and which one it was mutated from, by index."""

    call: Call
    parent: int


@dataclass(frozen=True)
class Rules:
    """``outs[k][a]`` gives size ``a`` of output ``k``; a call is valid where all ``valid`` hold.

    ``valid`` are Python conditions. ``missed`` of ``refused`` invalid calls pass them all.
    """

    outs: tuple[tuple[str, ...], ...]
    valid: tuple[str, ...]
    missed: int = 0
    refused: int = 0


HELD = 4
"""Every fourth labelled call is held out of the inference and checks it."""
NEARLY = 0.85
"""A smaller condition is preferred where it rejects this share of what the best one does."""
MISSED = 0.1
"""Share of the invalid calls that rules may let pass."""


def infer(rows: Sequence[Labelled]) -> Rules | None:
    """Rules learned from three calls in four and true of the others; None where there are none.

    They predict the sizes of every held-out valid call, and reject nearly all invalid ones.
    """
    shown = [r for n, r in enumerate(rows) if n % HELD]
    place = {n: k for k, n in enumerate(n for n in range(len(rows)) if n % HELD)}
    shown = [Labelled(r.call, place.get(r.parent, -1)) for r in shown]
    if not any(r.call.outs for r in shown):
        return None
    found = _fitted(shown)
    if found is None:
        return None
    seen = judged(found, [r.call for r in rows])
    if seen.wrong or seen.missed > MISSED * seen.refused:
        return None
    return Rules(found.outs, found.valid, seen.missed, seen.refused)


class Judged(NamedTuple):
    """How rules fare on labelled calls; ``narrow`` are valid ones that they reject."""

    valid: int = 0
    refused: int = 0
    missed: int = 0
    """Invalid calls that pass the rules."""
    wrong: int = 0
    """Valid calls that pass and have other sizes than predicted."""
    narrow: int = 0


def judged(rules: Rules, calls: Sequence[Call]) -> Judged:
    """Hold rules against labelled calls."""
    conditions = [compiled(t) for t in rules.valid]
    sizes = [[compiled(t) for t in out] for out in rules.outs]
    valid = refused = missed = wrong = narrow = 0
    for call in calls:
        symbols = call.symbols()
        try:
            passes = all(holds(symbols) for holds in conditions)
            shapes = [tuple(size(symbols) for size in out) for out in sizes]
        except ZeroDivisionError:
            passes, shapes = False, []
        passes = passes and all(n > 0 for shape in shapes for n in shape)
        valid += bool(call.outs)
        refused += not call.outs
        narrow += bool(call.outs) and not passes
        wrong += bool(call.outs) and passes and shapes != [t.shape for t in call.outs]
        missed += not call.outs and passes
    return Judged(valid, refused, missed, wrong, narrow)


def _fitted(rows: Sequence[Labelled]) -> Rules | None:
    good = [k for k, r in enumerate(rows) if r.call.outs]
    bad = [k for k, r in enumerate(rows) if not r.call.outs]
    table = columns([r.call for r in rows])
    inside = {s: c[good] for s, c in table.items()}
    outs: list[tuple[str, ...]] = []
    for k, spec in enumerate(rows[good[0]].call.outs):
        sizes: list[str] = []
        for a in range(len(spec.shape)):
            target = np.array([rows[g].call.outs[k].shape[a] for g in good], dtype=np.int64)
            found = search(target, inside, relevant(rows, good, target, inside))
            if found is None:
                return None
            sizes.append(found)
        outs.append(tuple(sizes))
    valid = constraints(table, good, bad, outs)
    return Rules(tuple(outs), tuple(valid))


def columns(calls: Sequence[Call]) -> dict[str, Rows]:
    """Symbol -> its value in every call."""
    rows = [c.symbols() for c in calls]
    return {s: np.array([r[s] for r in rows], dtype=np.int64) for s in rows[0]}


def relevant(
    rows: Sequence[Labelled], good: Sequence[int], target: Rows, inside: dict[str, Rows]
) -> list[str]:
    """Symbols whose change, alone or with few others, changed the target; fewest others first."""
    place = {k: n for n, k in enumerate(good)}
    weight: dict[str, float] = {}
    for n, k in enumerate(good):
        m = place.get(rows[k].parent)
        if m is None or target[m] == target[n]:
            continue
        changed = [s for s, c in inside.items() if c[m] != c[n]]
        for s in changed:
            weight[s] = max(weight.get(s, 0.0), 1 / len(changed))
    plain = [s for s in weight if s[0] in "di"]
    derived = [s for s in weight if s[0] not in "di"]
    return sorted(plain, key=lambda s: -weight[s]) + derived


def constraints(
    table: dict[str, Rows], good: list[int], bad: list[int], outs: list[tuple[str, ...]]
) -> list[str]:
    """Conditions true of the good rows that reject the bad ones.

    Each step takes what rejects most of the bad rows still left; a smaller condition that rejects
    nearly as many goes first, since a large one may only have met the rest by chance.
    """
    count = len(good) + len(bad)
    one = leaves(table, count)
    plain = leaves({s: c for s, c in table.items() if s[0] in "di"}, count)
    two = grown(plain, plain.terms(), 3000).terms()
    left = np.zeros(count, dtype=bool)
    left[bad] = True
    chosen: list[str] = []
    for text, holds in equalities(plain.terms(), good):
        if (left & ~holds).any() or not holds.all():
            chosen.append(text)
            left &= holds
    pool = _candidates(one.terms(), two, numerators(outs, table), good)
    pool.sort(key=lambda c: c[0].count(" "))
    texts = [t for t, _ in pool]
    holds = np.array([m for _, m in pool]) if pool else np.zeros((0, count), dtype=bool)
    while left.any() and len(texts):
        rejected = (~holds[:, left]).sum(1)
        best = int((rejected >= NEARLY * rejected.max()).argmax())
        # Chance rejects a few: a condition must explain what no other does, twice at least.
        if rejected[best] < (2 if chosen else 1):
            break
        chosen.append(texts[best])
        left &= holds[best]
    return chosen


def equalities(plain: Sequence[Term], good: list[int]) -> list[tuple[str, Mask]]:
    """Sizes and numbers that are equal in every good row, each tied to the first of its kind.

    All are kept: a cover of the invalid rows alone would leave one of three equal sizes free.
    """
    found: list[tuple[str, Mask]] = []
    first: dict[bytes, Term] = {}
    for t in plain:
        known = first.setdefault(t.rows[good].tobytes(), t)
        if known is not t and not (t.text.isdigit() and known.text.isdigit()):
            found.append((f"{known.text} == {t.text}", known.rows == t.rows))
    return found


def numerators(outs: Sequence[Sequence[str]], table: dict[str, Rows]) -> list[Term]:
    """Output sizes and what is divided in them, as terms: a window must fit at least once."""
    texts = {t for sizes in outs for t in sizes}
    for tree in [ast.parse(t, mode="eval") for t in texts]:
        for node in ast.walk(tree):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
                texts.add(f"({ast.unparse(node.left)})")
    return [Term(t, t.count(" ") // 2 + 1, _evaluated(t, table)) for t in sorted(texts)]


def _evaluated(text: str, table: dict[str, Rows]) -> Rows:
    """An expression on every row; a divisor of zero, which no valid call has, gives zero."""
    names = {**table, "min": np.minimum, "max": np.maximum}
    with np.errstate(divide="ignore"):
        value = eval(compile(text, "<rule>", "eval"), {"__builtins__": {}}, names)
    count = len(next(iter(table.values())))
    return np.broadcast_to(np.asarray(value, dtype=np.int64), (count,)).copy()


def _candidates(
    one: list[Term], two: list[Term], extra: list[Term], good: list[int]
) -> list[tuple[str, Mask]]:
    """Conditions that hold on every good row and not on every row, small ones first."""
    found: list[tuple[str, Mask]] = []
    seen: set[bytes] = set()

    def offer(text: str, holds: Mask) -> None:
        if holds[good].all() and not holds.all() and (key := holds.tobytes()) not in seen:
            seen.add(key)
            found.append((text, holds))

    for a in (*one, *extra):
        for c in (0, 1):
            offer(f"{a.text} >= {c}", a.rows >= c)
    right = np.array([b.rows for b in one])
    safe = np.where(right > 0, right, 1)
    for a in (*one, *two, *extra):
        for holds, sign in (
            (a.rows == right, "=="),
            (a.rows >= right, ">="),
            (a.rows <= right, "<="),
        ):
            for n in np.flatnonzero(holds[:, good].all(1)):
                offer(f"{a.text} {sign} {one[n].text}", holds[n])
        if a.size <= 2:
            whole = (a.rows % safe == 0) & (right > 0)
            for n in np.flatnonzero(whole[:, good].all(1)):
                if one[n].text[0] == "n":
                    continue  # a remainder by a count of elements tests for zero, at best
                offer(f"{a.text} % {one[n].text} == 0", whole[n])
            if (a.rows[good] > 0).all():
                mine = np.where(a.rows > 0, a.rows, 1)
                held = (right % mine == 0) & (a.rows > 0)
                for n in np.flatnonzero(held[:, good].all(1)):
                    offer(f"{one[n].text} % {a.text} == 0", held[n])
    for text, holds in _either(one, good):
        offer(text, holds)
    return found


def _either(one: list[Term], good: list[int]) -> list[tuple[str, Mask]]:
    """``a == b or a == 1 or b == 1`` (broadcasting) and ``a == b or a == 1``."""
    found: list[tuple[str, Mask]] = []
    named = [t for t in one if not t.text.isdigit()]
    for n, a in enumerate(named):
        for b in named[n + 1 :]:
            same, left, right = a.rows == b.rows, a.rows == 1, b.rows == 1
            for text, holds in (
                (f"{a.text} == {b.text} or {a.text} == 1", same | left),
                (f"{a.text} == {b.text} or {b.text} == 1", same | right),
                (f"{a.text} == {b.text} or {a.text} == 1 or {b.text} == 1", same | left | right),
            ):
                if holds[good].all():
                    found.append((text, holds))
    return found
