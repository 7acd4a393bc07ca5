"""Expressions of CUDA-like text, typed int or float as they are read."""

from __future__ import annotations

from dataclasses import dataclass

from paredown.kernels.loops.expr import CALLS, COMPARISONS, Call, Const, Expr, Load, Select, Var
from paredown.kernels.loops.expr import binary as folded
from paredown.kernels.loops.stmt import BUILT_IN
from paredown.kernels.loops.text import RANK, function
from paredown.kernels.loops.tokens import Words

FUNCTIONS = {function(name): name for name in CALLS if name != "float"}
EXTREMES = {"max": "max", "min": "min", "fmaxf": "max", "fminf": "min"}
Typed = tuple[Expr, str]


@dataclass(frozen=True)
class Symbol:
    """What a name stands for: a scalar, or a buffer of the given extents (none of a pointer)."""

    dtype: str
    buffer: bool = False
    extents: tuple[int, ...] = ()


class Expressions(Words):
    """Reads expressions; ``scope`` says what names stand for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.scope: dict[str, Symbol] = {}

    def expression(self) -> Typed:
        """A selection or what binds tighter."""
        condition, dtype = self.chain(2)
        if not self.accept("?"):
            return condition, dtype
        yes, no = self.expression(), (self.expect(":"), self.expression())[1]
        (a, b), kind = self.alike(yes, no)
        return Select(condition, a, b), kind

    def number(self, dtype: str) -> Expr:
        """An expression as this type; a float is never cut to an int."""
        e, own = self.expression()
        if own == dtype:
            return e
        if dtype == "int":
            self.fail("a float where an int was expected")
        return as_float(e)

    def index(self) -> Expr:
        """An int."""
        return self.number("int")

    def alike(self, a: Typed, b: Typed) -> tuple[tuple[Expr, Expr], str]:
        """Two operands as one type."""
        if a[1] == b[1]:
            return (a[0], b[0]), a[1]
        return (
            a[0] if a[1] == "float" else as_float(a[0]),
            b[0] if b[1] == "float" else as_float(b[0]),
        ), "float"

    def chain(self, rank: int) -> Typed:
        """Operators that bind at least so tightly, from left to right."""
        left = self.unary()
        while self.word.kind == "mark" and RANK.get(self.word.text, 0) >= rank:
            op = self.take().text
            right = self.chain(RANK[op] + 1)
            left = self.combine(op, left, right)
        return left

    def combine(self, op: str, left: Typed, right: Typed) -> Typed:
        """An operator of two operands."""
        (a, b), dtype = self.alike(left, right)
        if op in ("%", ">>") and dtype != "int":
            self.fail(f"{op} of floats")
        if op == "/" and dtype == "int":
            op = "//"
        return folded(op, a, b), "int" if op in COMPARISONS else dtype

    def unary(self) -> Typed:
        """A sign, a negation, a cast, or a primary expression."""
        if self.accept("-"):
            e, dtype = self.unary()
            if isinstance(e, Const):
                return Const(-e.value), dtype
            return folded("-", Const(0) if dtype == "int" else Const(0.0), e), dtype
        if self.accept("!"):
            return folded("==", self.unary()[0], Const(0)), "int"
        if self.word.text == "(" and self.ahead(1) in ("float", "int") and self.ahead(2) == ")":
            self.expect("(")
            dtype = self.take().text
            self.expect(")")
            e, own = self.unary()
            if dtype == "int" and own == "float":
                self.fail("a float cast to int")
            return (e if own == dtype else as_float(e)), dtype
        return self.primary()

    def primary(self) -> Typed:
        """A literal, a name, an element, a call, or parentheses."""
        word = self.take()
        match word.kind:
            case "int":
                return Const(int(word.text)), "int"
            case "float":
                return Const(float(word.text.rstrip("fF"))), "float"
            case "name" if self.word.text == "(":
                return self.call(word.text)
            case "name" if self.word.text == ".":
                self.expect(".")
                name = f"{word.text}.{self.name()}"
                if name not in BUILT_IN:
                    self.fail(f"no built-in {name}; its value must be written out")
                return Var(name), "int"
            case "name":
                return self.named(word.text)
            case _ if word.text == "(":
                e = self.expression()
                self.expect(")")
                return e
            case _:
                self.fail(f"{word.text!r} where an expression was expected")

    def call(self, name: str) -> Typed:
        """A function of floats, or the larger or smaller of two."""
        self.expect("(")
        if name in EXTREMES:
            a, b = self.expression(), (self.expect(","), self.expression())[1]
            self.expect(")")
            (x, y), dtype = self.alike(a, b)
            return folded(EXTREMES[name], x, y), dtype
        if name not in FUNCTIONS and name != "rsqrtf":
            self.fail(f"no function {name!r}; there are: {', '.join([*FUNCTIONS, 'rsqrtf'])}")
        e = self.number("float")
        self.expect(")")
        if name == "rsqrtf":
            return folded("/", Const(1.0), Call("sqrt", e)), "float"
        return Call(FUNCTIONS[name], e), "float"

    def symbol(self, name: str) -> Symbol:
        """What a name stands for."""
        if name not in self.scope:
            self.fail(f"{name!r} is not declared here")
        return self.scope[name]

    def named(self, name: str) -> Typed:
        """A scalar, or an element of a buffer."""
        symbol = self.symbol(name)
        if not symbol.buffer:
            return Var(name), symbol.dtype
        return Load(name, (self.place(name),)), symbol.dtype

    def place(self, name: str) -> Expr:
        """``[index]`` once, or once per extent, as one flat index."""
        extents = self.symbol(name).extents or (0,)
        at: Expr = Const(0)
        for n, extent in enumerate(extents):
            self.expect("[")
            index = self.index()
            self.expect("]")
            at = index if n == 0 else at * extent + index
        return at


def as_float(e: Expr) -> Expr:
    """An int as a float."""
    return Const(float(e.value)) if isinstance(e, Const) else Call("float", e)
