"""What a rule sees of an operator call, and what it answers: logical work and bytes moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from paredown.graph.graph import Graph, Node, Ref, Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """Logical work of one call. ``read`` and ``written`` in bytes; None: all inputs, all outputs.

    ``macs`` are multiply-accumulates of convolutions, matrix products, attention and recurrences;
    ``elementwise`` simple operations, ``transcendental`` exp-like ones, ``compare`` comparisons of
    sorting and pooling.
    """

    macs: int = 0
    elementwise: int = 0
    transcendental: int = 0
    compare: int = 0
    read: int | None = None
    written: int | None = None


class Call:
    """One node with its tensors at hand; arguments are looked up by position or by name."""

    def __init__(self, node: Node, graph: Graph) -> None:
        self.node = node
        self.graph = graph
        self.ins = [graph.tensors[i] for i in node.inputs]
        self.outs = [graph.tensors[i] for i in node.outputs]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as recorded (tensors as ``Ref``), or the default where it was left out."""
        if position < len(self.node.args):
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def tensor(self, position: int, name: str = "") -> Tensor | None:
        """The tensor at an argument, or None when there is none."""
        value = self.arg(position, name)
        return self.graph.tensors[value.tensor] if isinstance(value, Ref) else None

    def tensors(self, position: int, name: str = "") -> list[Tensor]:
        """The tensors of a list argument (a single tensor counts as a list of one)."""
        value = self.arg(position, name)
        items = value if isinstance(value, list) else [value]
        return [self.graph.tensors[v.tensor] for v in items if isinstance(v, Ref)]

    def need(self, position: int, name: str = "") -> Tensor:
        """The tensor at an argument; raises ``Unpriceable`` when it is missing."""
        t = self.tensor(position, name)
        if t is None:
            raise Unpriceable(f"{self.node.op}: argument {name or position} is not a tensor")
        return t

    @property
    def out(self) -> Tensor:
        """The first output."""
        if not self.outs:
            raise Unpriceable(f"{self.node.op} returned no tensor")
        return self.outs[0]

    def stored(self, t: Tensor) -> int:
        """Bytes behind a tensor: an expanded one is no larger than its storage."""
        return min(t.nbytes, self.graph.storages[t.storage].nbytes)

    def read_all(self) -> int:
        """Bytes of every input, each storage view once."""
        return sum(self.stored(t) for t in {t.id: t for t in self.ins}.values())

    def written_all(self) -> int:
        """Bytes of every output."""
        return sum(self.stored(t) for t in self.outs)


class Unpriceable(Exception):
    """A call does not have the form its rule knows; the node is reported as unpriced."""


Rule = Callable[[Call], Work]


def numel(t: Tensor) -> int:
    """Elements of a tensor."""
    return prod(t.shape)


def outputs(c: Call) -> int:
    """Elements of all outputs."""
    return sum(numel(t) for t in c.outs)


def inputs(c: Call) -> int:
    """Elements of all inputs."""
    return sum(numel(t) for t in c.ins)
