"""The pairwise matrix: every technique after every other, in both orders, on every network."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from paredown.technique import Technique, Touches
from paredown.testing.checks import case, pair
from paredown.testing.networks import NETWORKS


@dataclass(frozen=True)
class Cell:
    """One ordered pair on one network: sound outputs, a stated reason, or a defect."""

    network: str
    first: str
    second: str
    outcome: Literal["sound", "refused", "broken"]
    detail: str = ""


def cells(
    techniques: Mapping[str, Technique],
    pairs: Iterable[tuple[str, str]] | None = None,
    networks: Iterable[str] = tuple(NETWORKS),
    progress: Callable[[Cell], None] | None = None,
) -> Iterator[Cell]:
    """Run pairs (all ordered ones by default) on networks; a defect is a cell, not an exception."""
    names = list(techniques)
    wanted = list(pairs if pairs is not None else itertools.product(names, names))
    for network in networks:
        for first, second in wanted:
            cell = _run(network, techniques[first], techniques[second])
            if progress is not None:
                progress(cell)
            yield cell


def _run(network: str, first: Technique, second: Technique) -> Cell:
    try:
        why = pair(first, second, case(first, network).fresh)
    except Exception as e:  # every failure of a pair is the result to record
        said = str(e).strip().splitlines() or [""]
        return Cell(network, first.name, second.name, "broken", f"{type(e).__name__}: {said[0]}")
    outcome = "sound" if why is None else "refused"
    return Cell(network, first.name, second.name, outcome, why or "")


def sample(techniques: Mapping[str, Technique], seed: int = 0) -> list[tuple[str, str]]:
    """A few ordered pairs that meet every ordered pair of `touches` that any pair of techniques
    has.

    Greedy cover over a seeded shuffle: the same for one seed, another for the next.
    """
    pairs = list(itertools.product(techniques, techniques))
    random.Random(seed).shuffle(pairs)
    meets = {p: _meets(techniques[p[0]], techniques[p[1]]) for p in pairs}
    left: set[tuple[Touches, Touches]] = set().union(*meets.values())
    chosen: list[tuple[str, str]] = []
    while left:
        best = max(pairs, key=lambda p: len(meets[p] & left))
        chosen.append(best)
        left -= meets[best]
    return chosen


def _meets(a: Technique, b: Technique) -> set[tuple[Touches, Touches]]:
    return set(itertools.product(a.touches, b.touches))
