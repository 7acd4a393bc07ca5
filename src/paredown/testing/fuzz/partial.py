"""Partial operators: one function at one signature, with its rules and a few recorded calls.

NeuRI, section 3.2 (arXiv:2302.02261). One whose output sizes follow no expression that was found is
*concrete*: it is inserted only as it was recorded. `fuzz.learn` makes them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from paredown.files import sha256
from paredown.testing.fuzz.call import Call
from paredown.testing.fuzz.expressions import compiled
from paredown.testing.fuzz.infer import Rules

RECORDS = Path(__file__).with_name("records.json.gz")
OPERATORS = Path(__file__).with_name("operators.json.gz")

Condition = Callable[[dict[str, int]], int]


@dataclass(frozen=True)
class PartialOperator:
    """A signature with rules (None: concrete only), recorded calls, and whether inputs must be > 0.

    ``calls[0]`` stands for the signature.
    """

    calls: tuple[Call, ...]
    rules: Rules | None
    positive: bool = False
    learned_from: int = field(default=0, compare=False)

    @property
    def op(self) -> str:
        """The function's dotted name."""
        return self.calls[0].op

    @cached_property
    def conditions(self) -> list[Condition]:
        """The rules' conditions, compiled."""
        return [compiled(t) for t in (self.rules.valid if self.rules else ())]

    @cached_property
    def sizes(self) -> list[list[Condition]]:
        """The rules' output sizes, compiled."""
        return [[compiled(t) for t in out] for out in (self.rules.outs if self.rules else ())]

    def violated(self, symbols: dict[str, int]) -> int:
        """Conditions that do not hold; a division by zero breaks one."""
        wrong = 0
        for holds in self.conditions:
            try:
                wrong += not holds(symbols)
            except ZeroDivisionError:
                wrong += 1
        return wrong

    def shapes(self, symbols: dict[str, int]) -> list[tuple[int, ...]]:
        """The output shapes that the rules predict; ``ZeroDivisionError`` as in Python."""
        return [tuple(size(symbols) for size in out) for out in self.sizes]

    def to_json(self) -> dict[str, Any]:
        """The fields, for the file of operators."""
        r = self.rules
        said = None if r is None else [r.outs, r.valid, r.missed, r.refused]
        return {
            "calls": [c.to_json() for c in self.calls],
            "rules": said,
            "positive": self.positive,
            "learned_from": self.learned_from,
        }

    @classmethod
    def of_json(cls, row: dict[str, Any]) -> PartialOperator:
        """An operator from its fields."""
        said = row["rules"]
        rules = None
        if said is not None:
            outs, valid, missed, refused = said
            rules = Rules(tuple(tuple(o) for o in outs), tuple(valid), missed, refused)
        calls = tuple(Call.of_json(c) for c in row["calls"])
        return cls(calls, rules, row["positive"], row["learned_from"])


def records() -> list[Call]:
    """The recorded calls (`scripts/fuzz_records.py` makes the file)."""
    return [Call.of_json(r) for r in json.loads(gzip.decompress(RECORDS.read_bytes()))["calls"]]


@cache
def digest() -> str:
    """SHA-256 of the file of operators, shortened: one seed grows another network with another."""
    return sha256(OPERATORS)[:16]


@cache
def operators() -> tuple[PartialOperator, ...]:
    """The learned operators (`scripts/fuzz_operators.py` makes the file)."""
    document = json.loads(gzip.decompress(OPERATORS.read_bytes()))
    return tuple(PartialOperator.of_json(r) for r in document["operators"])
