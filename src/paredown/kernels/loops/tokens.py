"""The words of CUDA-like text: names, numbers, punctuation; comments and includes left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from paredown.errors import InputError

_PATTERN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*.*?\*/|\#include[^\n]*)
    |(?P<unroll>\#pragma\ unroll(?:\ \d+)?)
    |(?P<float>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?|\d+[eE][+-]?\d+[fF]?|\d+[fF])
    |(?P<int>\d+)
    |(?P<string>"[^"\n]*")
    |(?P<name>[A-Za-z_]\w*)
    |(?P<mark><<<|>>>|>>=|\+=|-=|\*=|/=|\+\+|--|<=|>=|==|!=|&&|\|\||>>|[-+*/%<>=!?:;,.(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Token:
    """A word, what kind it is, and its line."""

    kind: str
    text: str
    line: int


def tokenize(text: str) -> list[Token]:
    """All words and an ``end``; raises ``InputError`` for a character that begins none."""
    found: list[Token] = []
    at, line = 0, 1
    while at < len(text):
        m = _PATTERN.match(text, at)
        if m is None:
            raise InputError(f"line {line}: {text[at : at + 12]!r} is not understood in a kernel")
        if m.lastgroup != "skip":
            found.append(Token(str(m.lastgroup), m.group(), line))
        line += m.group().count("\n")
        at = m.end()
    return [*found, Token("end", "the end", line)]


class Words:
    """A place in a list of words."""

    def __init__(self, text: str) -> None:
        self._words = tokenize(text)
        self._at = 0

    @property
    def word(self) -> Token:
        """The next word."""
        return self._words[self._at]

    def ahead(self, count: int) -> str:
        """The text of a later word."""
        return self._words[min(self._at + count, len(self._words) - 1)].text

    def take(self) -> Token:
        """The next word, passed."""
        word = self.word
        if word.kind != "end":
            self._at += 1
        return word

    def accept(self, text: str) -> bool:
        """Pass the next word if it is this one."""
        if self.word.text != text or self.word.kind == "string":
            return False
        self._at += 1
        return True

    def expect(self, *texts: str) -> None:
        """Pass these words; raises ``InputError`` at another."""
        for text in texts:
            if not self.accept(text):
                self.fail(f"{self.word.text!r} where {text!r} was expected")

    def name(self) -> str:
        """Pass a name."""
        if self.word.kind != "name":
            self.fail(f"{self.word.text!r} where a name was expected")
        return self.take().text

    def whole(self) -> int:
        """Pass a literal whole number."""
        if self.word.kind != "int":
            self.fail(f"{self.word.text!r} where a whole number was expected")
        return int(self.take().text)

    def fail(self, what: str) -> NoReturn:
        """Raise ``InputError`` with the line."""
        raise InputError(f"line {self.word.line}: {what}")
