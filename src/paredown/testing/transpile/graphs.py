"""Augmentation: random graphs of twelve operators, each a new task for the bench.

After HPCTransCompile (Lv et al. 2025, arXiv:2506.10401, graph-based augmentation). A graph grows
from placeholders one operator at a time; an operand is an earlier result or a new placeholder, so
branches come and join and no cycle can. Beyond the paper: a graph is kept only where 32-bit floats
settle its results (``settled``), since ``tan`` and ``sinh`` of large values leave nothing to check.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.kernels.loops import library
from paredown.kernels.loops.compute import Builder
from paredown.kernels.loops.compute import Tensor as Symbol
from paredown.kernels.loops.expr import Expr, call
from paredown.testing.bench.task import TOLERANCE, Task
from paredown.testing.transpile.operators import Written

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "cos": torch.cos, "cosh": torch.cosh, "sin": torch.sin, "sinh": torch.sinh,
    "abs": torch.abs, "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip
JOINING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "matmul": torch.matmul,
    "batch_matmul": torch.bmm,
    "dense": nn.functional.linear,
}
OPERATORS = (*JOINING, *ELEMENTWISE)
PLACEHOLDER = "placeholder"
SIZES = (8, 16, 24, 33, 48)
BATCHES = (2, 3)
SCALE = 0.25
"""Inputs are normal with this deviation, so that chains of products stay near 1."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """An operator, the numbers of earlier nodes that it reads, and its result's shape."""

    op: str
    reads: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Graph:
    """Nodes in order; what no other reads is a result."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        for n, node in enumerate(self.nodes):
            if any(not 0 <= r < n for r in node.reads):
                raise InputError(f"node {n} ({node.op}) reads what does not come before it")
            want = None if node.op == PLACEHOLDER else self._shape(node)
            if want != node.shape and node.op != PLACEHOLDER:
                raise InputError(f"node {n} ({node.op}) gives {want}, not {node.shape}")

    def _shape(self, node: Node) -> Shape:
        return joined(node.op, *(self.nodes[r].shape for r in node.reads))

    @property
    def inputs(self) -> list[int]:
        """Numbers of the placeholders."""
        return [n for n, node in enumerate(self.nodes) if node.op == PLACEHOLDER]

    @property
    def results(self) -> list[int]:
        """Numbers of the operators that none reads."""
        read = {r for node in self.nodes for r in node.reads}
        return [n for n, node in enumerate(self.nodes) if n not in read and node.op != PLACEHOLDER]

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results, computed by torch."""
        given = iter(inputs)
        values: list[Tensor] = []
        for node in self.nodes:
            args = [values[r] for r in node.reads]
            if node.op == PLACEHOLDER:
                values.append(next(given))
            elif node.op in ELEMENTWISE:
                values.append(ELEMENTWISE[node.op](args[0]))
            else:
                values.append(JOINING[node.op](args[0], args[1]))
        return tuple(values[n] for n in self.results)

    def written(self) -> Written:
        """The same as an operator of the loop language."""
        b = Builder(self.name)
        values: list[Symbol] = []
        for n, node in enumerate(self.nodes):
            args = [values[r] for r in node.reads]
            values.append(
                b.input(f"x{n}", *node.shape) if node.op == PLACEHOLDER else _stage(b, node, args)
            )
        return Written(b.done(*(values[n] for n in self.results)), [])

    @property
    def name(self) -> str:
        """Its operators, in order."""
        return "-".join(node.op for node in self.nodes if node.op != PLACEHOLDER)

    def task(self) -> Task:
        """A task of the bench that is on no list."""
        shapes = [self.nodes[n].shape for n in self.inputs]

        def draw(g: torch.Generator) -> tuple[Tensor, ...]:
            return tuple(SCALE * torch.randn(s, generator=g) for s in shapes)

        return Task(self.name, "fusion", lambda: _Module(self), draw)

    def settled(self) -> bool:
        """Whether 32-bit floats give its results to a tenth of the tolerance."""
        for inputs in self.task().inputs(2):
            single = self.run(*inputs)
            double = self.run(*(t.double() for t in inputs))
            for a, b in zip(single, double, strict=True):
                if not torch.allclose(a.double(), b, TOLERANCE / 10, TOLERANCE / 10):
                    return False
        return True

    def to_json(self) -> list[Any]:
        """Plain data."""
        return [[n.op, list(n.reads), list(n.shape)] for n in self.nodes]

    @staticmethod
    def from_json(rows: Any) -> Graph:
        """The graph again; raises ``InputError`` for what is none."""
        try:
            return Graph(tuple(Node(str(o), tuple(r), tuple(s)) for o, r, s in rows))
        except (TypeError, ValueError) as e:
            raise InputError(f"this is no graph of operators: {e}") from None


class _Module(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> Any:
        out = self.graph.run(*inputs)
        return out[0] if len(out) == 1 else out


def joined(op: str, *shapes: Shape) -> Shape:
    """The shape that an operator gives; raises ``InputError`` where operands do not fit."""
    match op, shapes:
        case _, (only,) if op in ELEMENTWISE:
            return only
        case "add" | "subtract", (a, b) if a == b:
            return a
        case "matmul", ((m, k), (k2, n)) if k == k2:
            return m, n
        case "batch_matmul", ((b, m, k), (b2, k2, n)) if (b, k) == (b2, k2):
            return b, m, n
        case "dense", ((*lead, k), (n, k2)) if k == k2:
            return *lead, n
        case _:
            raise InputError(f"operator {op} does not take {', '.join(map(str, shapes))}")


def grow(seed: int, operators: int = 5) -> Graph:
    """A random settled graph of so many operators; the same for the same seed."""
    choose = random.Random(seed)
    while True:
        start = choose.choice((_matrix(choose), (choose.choice(BATCHES), *_matrix(choose))))
        graph = Graph((Node(PLACEHOLDER, (), start),))
        while len(graph.nodes) - len(graph.inputs) < operators:
            graph = extended(graph, choose)
        if graph.settled():
            return graph


def extended(graph: Graph, choose: random.Random) -> Graph:
    """The graph with one more operator, on a recent result and maybe another."""
    nodes = graph.nodes
    left = choose.choice(range(max(0, len(nodes) - 4), len(nodes)))
    shape = nodes[left].shape
    op = choose.choice([o for o in OPERATORS if _takes(o, shape)])
    if op in ELEMENTWISE:
        return Graph((*nodes, Node(op, (left,), joined(op, shape))))
    fitting = [n for n, node in enumerate(nodes) if n != left and _fits(op, shape, node.shape)]
    if fitting and choose.random() < 0.6:
        right = choose.choice(fitting)
        return Graph((*nodes, Node(op, (left, right), joined(op, shape, nodes[right].shape))))
    other = _operand(op, shape, choose)
    new = Node(op, (left, len(nodes)), joined(op, shape, other))
    return Graph((*nodes, Node(PLACEHOLDER, (), other), new))


def _matrix(choose: random.Random) -> tuple[int, int]:
    return choose.choice(SIZES), choose.choice(SIZES)


def _takes(op: str, shape: Shape) -> bool:
    return len(shape) == {"matmul": 2, "batch_matmul": 3}.get(op, len(shape))


def _fits(op: str, left: Shape, right: Shape) -> bool:
    try:
        joined(op, left, right)
    except InputError:
        return False
    return True


def _operand(op: str, shape: Shape, choose: random.Random) -> Shape:
    wide = choose.choice(SIZES)
    match op:
        case "matmul":
            return shape[1], wide
        case "batch_matmul":
            return shape[0], shape[2], wide
        case "dense":
            return wide, shape[-1]
        case _:
            return shape


def _stage(b: Builder, node: Node, args: list[Symbol]) -> Symbol:
    match node.op:
        case "add":
            return library.each(b, lambda p, q: p + q, *args)
        case "subtract":
            return library.each(b, lambda p, q: p - q, *args)
        case "matmul" | "batch_matmul":
            return library.matmul(b, *args)
        case "dense":
            return library.dense(b, *args)
        case _:
            return library.each(b, _function(node.op), *args)


def _function(name: str) -> Callable[[Expr], Expr]:
    return lambda e: call(name, e)
