"""Expressions evaluated on NumPy arrays, element by element, floats in 32 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from paredown.kernels.loops.expr import Binary, Call, Const, Expr, Load, Select, Var


def _erf(x: Any) -> Any:
    from scipy import special

    return special.erf(x)


CALLS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": _erf,
    "exp": np.exp,
    "float": lambda x: x,
    "log": np.log,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}


def quotient(a: Any, b: Any) -> Any:
    """C's division of integers: towards zero."""
    return (np.abs(a) // np.abs(b)) * (np.sign(a) * np.sign(b))


def remainder(a: Any, b: Any) -> Any:
    """C's remainder: of the sign of ``a``."""
    return a - b * quotient(a, b)


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    ">>": np.right_shift,
    "max": np.maximum,
    "min": np.minimum,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
    "//": quotient,
    "%": remainder,
}


class Arithmetic(ABC):
    """Values of expressions; subclasses say what variables and elements are."""

    @abstractmethod
    def variable(self, name: str) -> Any:
        """The value of a variable."""

    @abstractmethod
    def element(self, load: Load, index: list[Any]) -> Any:
        """Elements of a buffer at these indices."""

    def where(self, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """One of two by a condition; both may be evaluated."""
        return np.where(condition, yes(), no())

    def value(self, e: Expr) -> Any:
        """The value of an expression: a number or an array of them."""
        match e:
            case Const(value):
                return np.float32(value) if isinstance(value, float) else value
            case Var(name):
                return self.variable(name)
            case Load(_, index):
                return self.element(e, [self.value(i) for i in index])
            case Binary("&&", left, right):
                return self.where(self.value(left), lambda: self.truth(right), lambda: False)
            case Binary("||", left, right):
                return self.where(self.value(left), lambda: True, lambda: self.truth(right))
            case Binary(op, left, right):
                return OPERATORS[op](self.value(left), self.value(right))
            case Call(name, argument):
                # They take and give floats, whatever NumPy would make of integers.
                return np.float32(1) * CALLS[name](np.float32(1) * self.value(argument))
            case Select(condition, yes, no):
                return self.where(
                    self.value(condition), lambda: self.value(yes), lambda: self.value(no)
                )
            case _:
                raise AssertionError(f"no such expression: {e}")

    def truth(self, e: Expr) -> Any:
        """An expression as a condition."""
        return np.not_equal(self.value(e), 0)
