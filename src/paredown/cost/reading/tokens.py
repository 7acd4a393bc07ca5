"""Tokens of a network's text: operators, shapes, and with ``operands`` all that they read.

ML-driven hardware cost model for MLIR (2023, arXiv:2302.11405): operators with a token per tensor
shape, or operands with their names as well; words that training never saw are one token.

Deviation: a dimension is a token of its own, its logarithm rounded to quarters of an octave, so
that sizes never seen are near to seen ones instead of unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paredown.errors import InputError
from paredown.graph.text import parse

Detail = Literal["operators", "operands"]
PAD, UNKNOWN = 0, 1
NAMES = 32
"""Values beyond so many share a name."""
_SHAPE = re.compile(r"(\(\)|\d+(?:x\d+)*) (\w+)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def tokens(written: str, detail: Detail = "operands") -> list[str]:
    """Words of a text of mode ``nodes``, the same for the same text."""
    found: list[str] = []
    for record in parse(written):
        found.append(record.op)
        if detail == "operands":
            for argument in record.arguments:
                found += _argument(argument)
            found.append("=")
        for name, shape in record.results:
            found += ([_value(name)] if detail == "operands" else []) + _dims(shape)
    return found


def _value(name: str) -> str:
    return f"%{min(int(name[1:]), NAMES)}" if name.startswith("%") else name


def _dims(shape: str) -> list[str]:
    matched = _SHAPE.fullmatch(shape)
    if matched is None:
        raise InputError(f"not a shape: {shape!r}")
    sizes, kind = matched.groups()
    numbers = [] if sizes == "()" else sizes.split("x")
    return [*(_size(int(n)) for n in numbers), kind]


def _size(n: int) -> str:
    return f"d{round(4 * log2(n + 1))}"


def _argument(argument: str) -> list[str]:
    if argument.startswith("%"):
        return [_value(argument)]
    if "[" in argument and argument.endswith("]") and argument[0] in "PC":
        head, _, inner = argument[:-1].partition("[")
        return [head, *_dims(inner)]
    if _NUMBER.fullmatch(argument):
        whole = float(argument)
        return [_size(int(whole))] if whole == int(whole) and whole >= 0 else [argument[:6]]
    return [argument[:24]]


@dataclass(frozen=True)
class Vocabulary:
    """Words by their number; ``length`` tokens are kept of each text."""

    number: dict[str, int]
    length: int

    @staticmethod
    def of(texts: Sequence[Sequence[str]], *, least: int = 2, longest: int = 256) -> Vocabulary:
        """Words that occur ``least`` times, in order of frequency, then of the alphabet."""
        if not texts:
            raise InputError("a vocabulary needs texts")
        count = Counter(w for t in texts for w in t)
        words = sorted((w for w, n in count.items() if n >= least), key=lambda w: (-count[w], w))
        length = min(longest, max(map(len, texts)))
        return Vocabulary({w: i + 2 for i, w in enumerate(words)}, length)

    def __len__(self) -> int:
        return len(self.number) + 2

    def encoded(self, texts: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Numbers (texts, length), padded at the end, cut where a text is longer."""
        out = np.full((len(texts), self.length), PAD, np.int64)
        for row, words in zip(out, texts, strict=True):
            numbers = [self.number.get(w, UNKNOWN) for w in words[: self.length]]
            row[: len(numbers)] = numbers
        return out
