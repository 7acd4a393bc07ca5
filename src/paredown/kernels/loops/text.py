"""Expressions and statements as C: what the two printers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isfinite

from paredown.errors import InputError
from paredown.kernels.loops.expr import Binary, Call, Const, Expr, Load, Select, Var
from paredown.kernels.loops.stmt import (
    Allocate,
    Assign,
    Body,
    Declare,
    For,
    If,
    Kernel,
    Stmt,
    Store,
    Sync,
)

RANK = {
    "||": 2, "&&": 3, "==": 4, "!=": 4, "<": 5, "<=": 5, ">": 5, ">=": 5, ">>": 6,
    "+": 7, "-": 7, "*": 8, "/": 8, "//": 8, "%": 8,
}  # fmt: skip
"""How tightly C's operators bind; a selection is 1."""
FUNCTIONS = {"abs": "fabsf"}
"""Names in C that are not ``NAMEf``."""


def expression(e: Expr, tighter: int = 0) -> str:
    """C text, in parentheses where what stands around it binds tighter."""
    match e:
        case Const(float(value)):
            if not isfinite(value):
                raise InputError(f"no literal for {value} in a kernel")
            text = f"{value!r}f"
            return f"({text})" if value < 0 else text
        case Const(value):
            return f"({value})" if value < 0 else str(value)
        case Var(name):
            return name
        case Load(buffer, index):
            return f"{buffer}[{expression(index[0])}]"
        case Binary("max" | "min" as op, left, right):
            return f"{op}({expression(left)}, {expression(right)})"
        case Binary(op, left, right):
            rank = RANK[op]
            text = f"{expression(left, rank)} {op.replace('//', '/')} {expression(right, rank + 1)}"
            return f"({text})" if rank < tighter else text
        case Call("float", argument):
            return f"(float)({expression(argument)})"
        case Call(name, argument):
            return f"{function(name)}({expression(argument)})"
        case Select(condition, yes, no):
            return f"({expression(condition, 2)} ? {expression(yes, 2)} : {expression(no, 2)})"
        case _:
            raise AssertionError(f"no such expression: {e}")


def function(name: str) -> str:
    """A function's name in C."""
    return FUNCTIONS.get(name, f"{name}f")


class Printer(ABC):
    """Statements as lines of C. Subclasses say what stands before loops and arrays."""

    def lines(self, body: Body, depth: int = 1) -> list[str]:
        """All lines, two blanks a level."""
        found: list[str] = []
        for s in body:
            found += ["  " * depth + line if line else "" for line in self.head(s)]
            match s:
                case For():
                    found += [*self.lines(s.body, depth + 1), "  " * depth + "}"]
                case If():
                    found += self.lines(s.body, depth + 1)
                    if s.otherwise:
                        found += ["  " * depth + "} else {", *self.lines(s.otherwise, depth + 1)]
                    found.append("  " * depth + "}")
                case _:
                    continue
        return found

    def head(self, s: Stmt) -> list[str]:
        """A statement, or the line that opens it and what stands before."""
        match s:
            case Declare(name, dtype, value):
                return [f"{dtype} {name} = {expression(value)};"]
            case Assign(name, value):
                return [f"{name} = {expression(value)};"]
            case Store(buffer, index, value):
                return [f"{buffer}[{expression(index)}] = {expression(value)};"]
            case Allocate():
                return [self.array(s)]
            case For():
                step = "++" if s.update == "+=" and s.step == Const(1) else ""
                turn = f"++{s.name}" if step else f"{s.name} {s.update} {expression(s.step)}"
                return [
                    *self.before(s),
                    f"for (int {s.name} = {expression(s.start)}; "
                    f"{s.name} {s.compare} {expression(s.stop)}; {turn}) {{",
                ]
            case If():
                return [f"if ({expression(s.condition)}) {{"]
            case Sync():
                return [self.barrier()]
            case _:
                raise AssertionError(f"no such statement: {s}")

    @abstractmethod
    def before(self, s: For) -> list[str]:
        """What stands before a loop of this kind."""

    def array(self, s: Allocate) -> str:
        """An array."""
        return f"{s.dtype} {s.name}[{s.size}];"

    @abstractmethod
    def barrier(self) -> str:
        """A barrier; raises ``InputError`` where there is none."""


def parameters(kernel: Kernel) -> str:
    """A kernel's parameters."""
    return ", ".join(
        f"{'const ' if p.const else ''}{p.dtype}* __restrict__ {p.name}" for p in kernel.parameters
    )
