"""Whole-number expressions over the sizes and attributes of calls, built bottom-up.

NeuRI, section 3.2 (arXiv:2302.02261): expressions grow from symbols and small constants with ``+``,
``-``, ``*``, ``//``, ``min`` and ``max``; of two that agree on every record only the smaller is
kept (observational equivalence).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
CONSTANTS = (1, 2)


class Term(NamedTuple):
    """An expression, the leaves in it, and its value on every record."""

    text: str
    size: int
    rows: Rows


@dataclass
class Bank:
    """Terms by their values, the smallest of each kind."""

    found: dict[bytes, Term]

    def add(self, text: str, size: int, rows: Rows) -> None:
        """Keep a term unless a smaller one has its values."""
        key = rows.tobytes()
        if key not in self.found:
            self.found[key] = Term(text, size, rows)

    def look(self, rows: Rows) -> Term | None:
        """The term with these values."""
        return self.found.get(rows.tobytes())

    def terms(self) -> list[Term]:
        """Every term, small ones first."""
        return list(self.found.values())


def leaves(symbols: dict[str, Rows], count: int) -> Bank:
    """Symbols and constants."""
    bank = Bank({})
    for name, rows in symbols.items():
        bank.add(name, 1, rows)
    for c in CONSTANTS:
        bank.add(str(c), 1, np.full(count, c, dtype=np.int64))
    return bank


def grown(bank: Bank, partners: Iterable[Term], most: int) -> Bank:
    """The bank and every combination of a term of it with a partner, up to ``most`` terms."""
    out = Bank(dict(bank.found))
    partners = list(partners)
    for a in bank.terms():
        for b in partners:
            if len(out.found) >= most:
                return out
            size = a.size + b.size
            for text, rows in _combined(a, b):
                out.add(text, size, rows)
    return out


def _combined(a: Term, b: Term) -> Iterable[tuple[str, Rows]]:
    yield f"({a.text} + {b.text})", a.rows + b.rows
    yield f"({a.text} - {b.text})", a.rows - b.rows
    yield f"({b.text} - {a.text})", b.rows - a.rows
    yield f"({a.text} * {b.text})", a.rows * b.rows
    if (b.rows > 0).all():
        yield f"({a.text} // {b.text})", a.rows // b.rows
    if (a.rows > 0).all():
        yield f"({b.text} // {a.text})", b.rows // a.rows
    yield f"min({a.text}, {b.text})", np.minimum(a.rows, b.rows)
    yield f"max({a.text}, {b.text})", np.maximum(a.rows, b.rows)


def search(
    target: Rows, everything: dict[str, Rows], relevant: list[str], most: int = 1500
) -> str | None:
    """The smallest expression found with the target's values; None when there is none.

    A constant, a symbol, then up to three leaves over the relevant symbols, then two of those added
    or subtracted, and such a sum divided by an attribute (windows that move by a stride). The last
    two are met in the middle: the other half is looked up, not enumerated.
    """
    if (target == target[0]).all() and not relevant:
        return str(int(target[0]))
    one = leaves(everything, len(target)).look(target)
    if one is not None:
        return one.text
    small = leaves({s: everything[s] for s in relevant[:6]}, len(target))
    bank = small
    for _ in range(2):
        bank = grown(bank, small.terms(), most)
        hit = bank.look(target)
        if hit is not None:
            return hit.text
    hit_text = _halves(target, bank)
    if hit_text is not None:
        return hit_text
    for divisor in small.terms():
        if divisor.text[0] == "i" and (divisor.rows > 0).all() and (divisor.rows == 1).sum() > 2:
            for shift in (0, 1):
                hit_text = _divided(target - shift, divisor, bank)
                if hit_text is not None:
                    return f"({hit_text} + {shift})" if shift else hit_text
    return None


def _halves(target: Rows, bank: Bank) -> str | None:
    for a in bank.terms():
        for sign, rest in (("+", target - a.rows), ("-", a.rows - target)):
            b = bank.look(rest)
            if b is not None:
                return f"({a.text} {sign} {b.text})"
    return None


def _divided(target: Rows, divisor: Term, bank: Bank) -> str | None:
    """``(a - b - 1) // divisor`` or with 0: exact where the divisor is one, tried on the rest."""
    here = divisor.rows == 1
    seen: dict[bytes, list[Term]] = {}
    for t in bank.terms():
        seen.setdefault(t.rows[here].tobytes(), []).append(t)
    for less in (0, 1):
        for a in bank.terms():
            for b in seen.get((a.rows[here] - less - target[here]).tobytes(), ()):
                if ((a.rows - b.rows - less) // divisor.rows == target).all():
                    minus = f" - {less}" if less else ""
                    return f"(({a.text} - {b.text}{minus}) // {divisor.text})"
    return None


def compiled(text: str) -> Callable[[dict[str, int]], int]:
    """An expression as a function of the symbols' values; ``ZeroDivisionError`` as in Python.

    The text comes from this module, or from our own file of rules: names, numbers, operators.
    """
    code = compile(text, "<rule>", "eval")

    def value(symbols: dict[str, int]) -> int:
        return int(eval(code, {"__builtins__": {}, "min": min, "max": max}, symbols))

    return value
