"""The table of lowering rules: exported operator -> a function ``(builder, node) -> value``.

A rule raises ``Lacking`` before it emits anything when the engine has no operator for its case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from paredown.runtime.native.builder import Builder, Value

Rule = Callable[[Builder, torch.fx.Node], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by their full names, ``aten.relu.default`` say."""

    def put(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return put


def argument(node: torch.fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a node by position or name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def pair(value: Any) -> tuple[int, int]:
    """A size given once or twice."""
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def result(node: torch.fx.Node) -> torch.Tensor:
    """The fake tensor that a node gives: its shape and dtype."""
    return node.meta["val"]


def dtype_of(node: torch.fx.Node) -> str:
    """The dtype a node gives, by name."""
    return str(result(node).dtype).removeprefix("torch.")
