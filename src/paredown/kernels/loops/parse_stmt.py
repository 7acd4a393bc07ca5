"""Statements of CUDA-like text."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from math import prod

from paredown.kernels.loops.expr import Binary, Const, Expr, Load, Var
from paredown.kernels.loops.expr import binary as folded
from paredown.kernels.loops.parse_expr import Expressions, Symbol
from paredown.kernels.loops.stmt import (
    Allocate,
    Assign,
    Body,
    Declare,
    For,
    If,
    Stmt,
    Store,
    Sync,
    statements,
)

TYPES = ("float", "int")


class Statements(Expressions):
    """Reads statements."""

    def type(self) -> str:
        """``float`` or ``int``."""
        if self.word.text not in TYPES:
            self.fail(f"{self.word.text!r} where float or int was expected")
        return self.take().text

    @contextmanager
    def scoped(self) -> Generator[None]:
        """Names declared inside end with it."""
        outside = dict(self.scope)
        yield
        self.scope = outside

    def declare(self, name: str, symbol: Symbol) -> None:
        """A new name; one that is in sight must not be taken again."""
        if name in self.scope:
            self.fail(f"{name!r} hides another of that name")
        self.scope[name] = symbol

    def block(self) -> Body:
        """Statements in braces, or a single one."""
        with self.scoped():
            return self.rest(False) if self.accept("{") else self.statement(False)

    def rest(self, outermost: bool) -> Body:
        """Statements up to the closing brace; after a guard, all others hang on it."""
        found: list[Stmt] = []
        while not self.accept("}"):
            if self.word.kind == "end":
                self.fail("a brace is not closed")
            guard = self.guard() if outermost else None
            if guard is not None:
                return (*found, If(guard, self.rest(True)))
            found += self.statement(outermost)
        return tuple(found)

    def guard(self) -> Expr | None:
        """``if (c) return;``: what holds for those that go on; None where there is none."""
        if self.word.text != "if":
            return None
        start = self._at
        self.expect("if", "(")
        condition = self.index()
        self.expect(")")
        braced = self.accept("{")
        if not self.accept("return"):
            self._at = start
            return None
        self.expect(";")
        if braced:
            self.expect("}")
        return _negated(condition)

    def statement(self, outermost: bool) -> Body:
        """One statement; a declaration of several names is several."""
        if self.word.kind == "unroll":
            self.take()
            if self.word.text != "for":
                self.fail("#pragma unroll before something that is no loop")
            return (self.counted("unroll"),)
        match self.word.text:
            case ";":
                self.take()
                return ()
            case "{":
                return self.block()
            case "for":
                return (self.counted("serial"),)
            case "if":
                return (self.branch(),)
            case "__syncthreads":
                self.expect("__syncthreads", "(", ")", ";")
                return (Sync(),)
            case "__shared__":
                self.take()
                return self.declaration("shared")
            case "const" | "float" | "int":
                self.accept("const")
                return self.declaration("local")
            case "return" if not outermost:
                self.fail("return inside a loop or a branch")
            case _:
                return (self.assignment(),)

    def declaration(self, scope: str) -> Body:
        """Scalars with a first value, or arrays without."""
        dtype = self.type()
        found: list[Stmt] = []
        while True:
            name = self.name()
            extents: list[int] = []
            while self.accept("["):
                extents.append(self.whole())
                self.expect("]")
            if extents:
                self.declare(name, Symbol(dtype, True, tuple(extents)))
                found.append(Allocate(name, dtype, prod(extents), scope))
            elif scope == "shared":
                self.fail(f"shared scalar {name!r}: make it an array of one")
            else:
                zero = Const(0) if dtype == "int" else Const(0.0)
                value = self.number(dtype) if self.accept("=") else zero
                self.declare(name, Symbol(dtype))
                found.append(Declare(name, dtype, value))
            if not self.accept(","):
                self.expect(";")
                return tuple(found)

    def counted(self, kind: str) -> For:
        """A counted loop."""
        with self.scoped():
            self.expect("for", "(", "int")
            name = self.name()
            self.expect("=")
            start = self.index()
            self.declare(name, Symbol("int"))
            self.expect(";", name)
            compare = self.take().text
            if compare not in ("<", "<=", ">", ">="):
                self.fail(f"a loop that goes on while {name} {compare}")
            stop = self.index()
            self.expect(";")
            update, step = self.update(name)
            self.expect(")")
            body = self.block()
            if any(isinstance(s, Assign) and s.name == name for s in statements(body)):
                self.fail(f"loop variable {name} is changed inside its loop")
            return For(name, start, stop, body, kind, compare, update, step)

    def update(self, name: str) -> tuple[str, Expr]:
        """How a loop's variable changes."""
        if self.accept("++"):
            self.expect(name)
            return "+=", Const(1)
        self.expect(name)
        if self.accept("++"):
            return "+=", Const(1)
        op = self.take().text
        if op not in ("+=", "-=", ">>="):
            self.fail(f"a loop that steps by {op}")
        return op, self.index()

    def branch(self) -> If:
        """``if`` with or without ``else``."""
        self.expect("if", "(")
        condition = self.index()
        self.expect(")")
        body = self.block()
        return If(condition, body, self.block() if self.accept("else") else ())

    def assignment(self) -> Stmt:
        """A new value of a scalar or an element; ``op=`` and ``++`` written out."""
        name = self.name()
        symbol = self.symbol(name)
        at = self.place(name) if symbol.buffer else None
        old: Expr = Var(name) if at is None else Load(name, (at,))
        op = self.take().text
        if op == "++":
            value = folded("+", old, Const(1))
        elif op == "=":
            value = self.number(symbol.dtype)
        elif op in ("+=", "-=", "*=", "/="):
            right = self.number(symbol.dtype)
            value = self.combine(op[0], (old, symbol.dtype), (right, symbol.dtype))[0]
        else:
            self.fail(f"{op!r} where a value was to be given to {name}")
        self.expect(";")
        return Assign(name, value) if at is None else Store(name, at, value)


def _negated(condition: Expr) -> Expr:
    turned = {"<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "=="}
    if isinstance(condition, Binary) and condition.op in turned:
        return folded(turned[condition.op], condition.left, condition.right)
    if isinstance(condition, Binary) and condition.op == "||":
        return folded("&&", _negated(condition.left), _negated(condition.right))
    return folded("==", condition, Const(0))
