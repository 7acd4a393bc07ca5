"""Labelled calls around recorded ones: sizes made small, numbers changed, each tried with torch.

NeuRI, section 3.1 (arXiv:2302.02261): mutated calls that torch refuses are the negative examples,
those that it takes separate rules that agree on the recorded ones alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from paredown.testing.fuzz.call import MOST, Call, label
from paredown.testing.fuzz.infer import Labelled

SMALL = 12
"""Numbers of recorded calls are brought down to about this."""


def smaller(call: Call) -> Call | None:
    """The same call at small sizes: equal numbers stay equal; None where no way was found.

    A network's 768 features are learned from as well as 12, and cost nothing.
    """
    values = call.free()
    for rule in (_halved, _thirds, _ranked):
        if max(values.values(), default=0) <= SMALL:
            break
        image = rule(sorted(set(values.values())))
        tried = label(call.at({s: image[v] for s, v in values.items()}))
        if tried.outs and len(tried.outs) == len(call.outs or tried.outs):
            return tried
    tried = label(call)
    return tried if tried.outs else None


def _halved(values: Sequence[int]) -> dict[int, int]:
    image = {}
    for v in values:
        small = v
        while small > SMALL and small % 2 == 0:
            small //= 2
        image[v] = small if small <= SMALL else 7
    return image


def _thirds(values: Sequence[int]) -> dict[int, int]:
    image = {}
    for v in values:
        small = v
        for p in (7, 5, 3, 2):
            while small > SMALL and small % p == 0:
                small //= p
        image[v] = small if small <= SMALL else 5
    return image


def _ranked(values: Sequence[int]) -> dict[int, int]:
    """Small numbers stay, large ones become 8, 9, 10 ... in order."""
    large = [v for v in values if v > SMALL]
    return {v: (8 + large.index(v) % 5 if v > SMALL else v) for v in values}


def around(bases: Sequence[Call], count: int, seed: int, positive: bool = False) -> list[Labelled]:
    """The bases and about ``count`` mutations of them and of valid mutations, all labelled.

    A mutation sets one or two symbols, or all symbols of one value at once, so that sizes that must
    agree go on agreeing. Calls of another signature than the first base's are left out.
    """
    rng = random.Random(seed)
    rows = [Labelled(b, -1) for b in bases]
    signature = bases[0].signature()
    valid = list(range(len(rows)))
    seen = {json.dumps(b.to_json()[:5]) for b in bases}
    for _ in range(count):
        parent = rng.choice(valid[-20:] if rng.random() < 0.3 else valid)
        candidate = rows[parent].call.at(_changed(rows[parent].call, rng))
        key = json.dumps(candidate.to_json()[:5])
        if key in seen or max(candidate.symbols().values()) > MOST:
            continue  # too large to try: that would say nothing of its validity
        seen.add(key)
        tried = label(candidate, positive=positive)
        if tried.outs and tried.signature() != signature:
            continue
        rows.append(Labelled(tried, parent))
        if tried.outs:
            valid.append(len(rows) - 1)
    return rows


def _changed(call: Call, rng: random.Random) -> dict[str, int]:
    values = call.free()
    names = list(values)
    if not names:
        return {}
    if rng.random() < 0.5:
        # One value, wherever it stands.
        old = rng.choice([values[s] for s in names])
        new = _near(old, list(values.values()), rng)
        return {s: new for s in names if values[s] == old}
    picked = rng.sample(names, min(len(names), rng.choice((1, 1, 2))))
    return {s: _near(values[s], list(values.values()), rng) for s in picked}


def _near(value: int, others: Sequence[int], rng: random.Random) -> int:
    way = rng.randrange(7)
    if way == 0:
        return value + 1
    if way == 1:
        return max(value - 1, 0)
    if way == 2:
        return min(2 * value, 24)
    if way == 3:
        return value // 2
    if way == 4:
        return rng.choice(others)
    if way == 5:
        return rng.choice((1, 1, 2, 3))
    return rng.randint(1, SMALL)
