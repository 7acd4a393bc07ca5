"""Expressions of the loop-nest language: indices and values, folded as they are built.

Scalars are ``int`` (indices, conditions) or ``float`` (32 bits). Division of integers is ``//``, of
floats ``/``: both are C's ``/``, which for the indices made here (never negative) is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from paredown.errors import InputError

Number = int | float
CALLS = (
    "abs", "cos", "cosh", "erf", "exp", "float", "log", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
"""Functions of one float; ``float`` turns an integer into one."""
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=", "&&", "||")
OPERATORS = ("+", "-", "*", "/", "//", "%", ">>", "max", "min", *COMPARISONS)


class Expr:
    """What all expressions share: Python's operators build bigger ones."""

    def __add__(self, other: Expr | Number) -> Expr:
        return binary("+", self, wrap(other))

    def __radd__(self, other: Number) -> Expr:
        return binary("+", wrap(other), self)

    def __sub__(self, other: Expr | Number) -> Expr:
        return binary("-", self, wrap(other))

    def __rsub__(self, other: Number) -> Expr:
        return binary("-", wrap(other), self)

    def __mul__(self, other: Expr | Number) -> Expr:
        return binary("*", self, wrap(other))

    def __rmul__(self, other: Number) -> Expr:
        return binary("*", wrap(other), self)

    def __truediv__(self, other: Expr | Number) -> Expr:
        return binary("/", self, wrap(other))

    def __rtruediv__(self, other: Number) -> Expr:
        return binary("/", wrap(other), self)

    def __floordiv__(self, other: Expr | Number) -> Expr:
        return binary("//", self, wrap(other))

    def __mod__(self, other: Expr | Number) -> Expr:
        return binary("%", self, wrap(other))

    def __lt__(self, other: Expr | Number) -> Expr:
        return binary("<", self, wrap(other))

    def __le__(self, other: Expr | Number) -> Expr:
        return binary("<=", self, wrap(other))

    def __gt__(self, other: Expr | Number) -> Expr:
        return binary(">", self, wrap(other))

    def __ge__(self, other: Expr | Number) -> Expr:
        return binary(">=", self, wrap(other))


@dataclass(frozen=True)
class Const(Expr):
    """A literal; its Python type is its type."""

    value: Number


@dataclass(frozen=True)
class Var(Expr):
    """A loop variable, a private scalar, or a built-in index such as ``threadIdx.x``."""

    name: str


@dataclass(frozen=True)
class Load(Expr):
    """An element of a buffer: one index per axis in an operator, one flat index in a kernel."""

    buffer: str
    index: tuple[Expr, ...]


@dataclass(frozen=True)
class Binary(Expr):
    """``left op right``, one of ``OPERATORS``."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Call(Expr):
    """A function of one float, one of ``CALLS``."""

    name: str
    argument: Expr


@dataclass(frozen=True)
class Select(Expr):
    """``yes`` where the condition holds, else ``no``; only the chosen side is read from memory."""

    condition: Expr
    yes: Expr
    no: Expr


def wrap(value: Expr | Number) -> Expr:
    """A number as an expression."""
    return value if isinstance(value, Expr) else Const(value)


def call(name: str, argument: Expr) -> Expr:
    """A call; raises ``InputError`` for a function that is not in ``CALLS``."""
    if name not in CALLS:
        raise InputError(f"no function {name!r} in kernels; there are: {', '.join(CALLS)}")
    return Call(name, argument)


def binary(op: str, left: Expr, right: Expr) -> Expr:
    """``left op right``, with integer arithmetic folded."""
    match op, left, right:
        case _, Const(int(a)), Const(int(b)):
            return _folded(op, a, b)
        case "+", Const(int(0)), _:
            return right
        case "+" | "-", _, Const(int(0)):
            return left
        case "+", Binary("*", Binary("//", a, Const(n)), Const(m)), Binary("%", b, Const(k)):
            # The two parts of a fused loop's index, put together again.
            return a if a == b and n == m == k else Binary(op, left, right)
        case "*", Const(int(0)), _:
            return left
        case "*", _, Const(int(0)):
            return right
        case "*", Const(int(1)), _:
            return right
        case "*" | "//", _, Const(int(1)):
            return left
        case "%", _, Const(int(1)):
            return Const(0)
        case "&&", Const(int(a)), _:
            return right if a else left
        case "&&", _, Const(int(b)):
            return left if b else right
        case _:
            return Binary(op, left, right)


def _folded(op: str, a: int, b: int) -> Expr:
    table: dict[str, Callable[[int, int], int]] = {
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "//": lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1),
        "%": lambda x, y: abs(x) % abs(y) * (-1 if x < 0 else 1),
        ">>": lambda x, y: x >> y,
        "max": max,
        "min": min,
        "<": lambda x, y: int(x < y),
        "<=": lambda x, y: int(x <= y),
        ">": lambda x, y: int(x > y),
        ">=": lambda x, y: int(x >= y),
        "==": lambda x, y: int(x == y),
        "!=": lambda x, y: int(x != y),
        "&&": lambda x, y: int(bool(x and y)),
        "||": lambda x, y: int(bool(x or y)),
    }
    if op not in table or (op in ("//", "%") and b == 0):
        return Binary(op, Const(a), Const(b))
    return Const(table[op](a, b))


def children(e: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside one."""
    match e:
        case Load(_, index):
            return index
        case Binary(_, left, right):
            return left, right
        case Call(_, argument):
            return (argument,)
        case Select(condition, yes, no):
            return condition, yes, no
        case _:
            return ()


def walk(e: Expr) -> Iterator[Expr]:
    """An expression and all inside it."""
    yield e
    for inner in children(e):
        yield from walk(inner)


def names(e: Expr) -> set[str]:
    """Variables that an expression reads."""
    return {v.name for v in walk(e) if isinstance(v, Var)}


def rebuild(e: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """A copy in which ``change`` may replace any part (its answer is final), folded again."""
    new = change(e)
    if new is not None:
        return new
    match e:
        case Load(buffer, index):
            return Load(buffer, tuple(rebuild(i, change) for i in index))
        case Binary(op, left, right):
            return binary(op, rebuild(left, change), rebuild(right, change))
        case Call(name, argument):
            return Call(name, rebuild(argument, change))
        case Select(condition, yes, no):
            chosen = rebuild(condition, change)
            if isinstance(chosen, Const):
                return rebuild(yes if chosen.value else no, change)
            return Select(chosen, rebuild(yes, change), rebuild(no, change))
        case _:
            return e


def substitute(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """Variables replaced by expressions."""
    return rebuild(e, lambda x: values.get(x.name) if isinstance(x, Var) else None)


def affine(e: Expr) -> tuple[int, dict[str, int]] | None:
    """``constant + sum(coefficient * variable)``, or None for what is not of that form."""
    match e:
        case Const(int(value)):
            return value, {}
        case Var(name):
            return 0, {name: 1}
        case Binary("+" | "-" as op, left, right):
            a, b = affine(left), affine(right)
            if a is None or b is None:
                return None
            sign = 1 if op == "+" else -1
            terms = {k: a[1].get(k, 0) + sign * b[1].get(k, 0) for k in {**a[1], **b[1]}}
            return a[0] + sign * b[0], terms
        case Binary("*", left, right):
            a, b = affine(left), affine(right)
            if a is None or b is None or (a[1] and b[1]):
                return None
            scale, other = (a[0], b) if not a[1] else (b[0], a)
            return scale * other[0], {k: scale * v for k, v in other[1].items()}
        case _:
            return None
