"""A captured run as canonical text, one form for every network: for surrogates that read.

ONNX-Net (2025, arXiv:2510.04938): operators in the order of the graph, runs of single-input,
single-output operators joined on one line, weights written by their dimensions. ML-driven hardware
cost model for MLIR (2023, arXiv:2302.11405): the printed operators as tokens.

``chain`` joins runs by arrows and closes a line with a name and a shape; ``nodes`` gives each
operator a line with its shapes, and can be read back (`parse`); ``ops`` has operators alone.

Deviations: operators of the captured run instead of ONNX nodes; the order is canonical (a
topological order with ties broken by structure), so names and the order of storage do not show;
scalar attributes are kept, and lists of equal entries keep their length. Tied weights read as two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from typing import Any, Literal

from paredown.errors import InputError
from paredown.graph.graph import Graph, Node, Ref, Tensor

Mode = Literal["chain", "nodes", "ops"]
ARROW = " -> "
FIXED = {"parameter": "Param", "buffer": "Param", "constant": "Const"}


def text(graph: Graph, mode: Mode = "chain") -> str:
    """The text of a graph, one line per chain or per operator."""
    order = canonical(graph)
    if mode == "ops":
        return "\n".join(short(n.op) for n in order)
    namer = _Namer(graph)
    made = _chains(graph, order, namer) if mode == "chain" else _nodes(graph, order, namer)
    heads = [f"In{i}:{shape(graph.tensors[t])}" for i, t in enumerate(graph.inputs)]
    return "\n".join([*heads, *made, "Out(" + ", ".join(map(namer.name, graph.outputs)) + ")"])


def short(op: str) -> str:
    """An operator's name without its namespace where that is torch's own."""
    return op.removeprefix("aten::")


def shape(t: Tensor) -> str:
    """Dimensions and type: ``1x3x8x8 float32``; a scalar has no dimensions."""
    return f"{'x'.join(map(str, t.shape)) or '()'} {t.dtype}"


def canonical(graph: Graph) -> list[Node]:
    """Nodes in a topological order that depends on structure alone.

    Ties go to the node whose surroundings (operators, attributes and shapes, all that it reads and
    all that reads it) have the smaller digest; equal ones are interchangeable.
    """
    used = _used(graph)
    # Empty memory and views that nothing reads say nothing.
    nodes = [n for n in graph.nodes if not n.view or used & set(n.outputs)]
    by_index = {n.index: n for n in nodes}
    before = _dependencies(graph, nodes)
    after: dict[int, set[int]] = {n.index: set() for n in nodes}
    for i, sources in before.items():
        for s in sources:
            after[s].add(i)
    digest = _digests(graph, before, after)
    missing = {i: len(s) for i, s in before.items()}
    ready = [(digest[i], i) for i, count in missing.items() if not count]
    heapify(ready)
    order: list[Node] = []
    while ready:
        _, i = heappop(ready)
        order.append(by_index[i])
        for later in after[i]:
            missing[later] -= 1
            if not missing[later]:
                heappush(ready, (digest[later], later))
    return order


def _dependencies(graph: Graph, nodes: Sequence[Node]) -> dict[int, set[int]]:
    """Nodes that come before each: makers of what it reads; around writes in place, all others
    that touch the storage.
    """
    maker = {t: n.index for n in nodes for t in n.outputs}
    before: dict[int, set[int]] = {}
    written: dict[int, int] = {}
    read: dict[int, set[int]] = {}
    for n in nodes:
        needs = {maker[t] for t in n.inputs if t in maker}
        touched = {graph.tensors[t].storage for t in n.inputs}
        needs |= {written[s] for s in touched if s in written}
        made = {graph.tensors[t].storage for t in n.outputs} & touched
        for s in () if n.view else made:
            needs |= read.pop(s, set())
            written[s] = n.index
        for s in touched - made if not n.view else touched:
            read.setdefault(s, set()).add(n.index)
        before[n.index] = needs - {n.index}
    return before


def _used(graph: Graph) -> set[int]:
    """Tensors that some node reads or the run hands out."""
    return {t for n in graph.nodes for t in n.inputs} | set(graph.outputs)


def _digests(
    graph: Graph, before: dict[int, set[int]], after: dict[int, set[int]]
) -> dict[int, bytes]:
    """A digest of each node with all it depends on, then with all that depends on it."""
    by_index = {n.index: n for n in graph.nodes if n.index in before}
    forward: dict[int, bytes] = {}
    places = {t: (n.index, k) for n in graph.nodes for k, t in enumerate(n.outputs)}
    inputs = {t: k for k, t in enumerate(graph.inputs)}

    def operand(t: int) -> bytes:
        if t in inputs:
            return b"in%d" % inputs[t]
        if t in places and places[t][0] in forward:
            index, k = places[t]
            return forward[index] + b"/%d" % k
        return shape(graph.tensors[t]).encode()

    order = _any_order(before, after)
    for i in order:
        n = by_index[i]
        own = [n.op, *map(str, _attributes(n)), *(shape(graph.tensors[t]) for t in n.outputs)]
        forward[i] = _hash("|".join(own).encode(), *(operand(t) for t in _operands(n)))
    outputs = {t: k for k, t in enumerate(graph.outputs)}
    whole: dict[int, bytes] = {}
    for i in reversed(order):
        ends = [b"out%d" % outputs[t] for t in by_index[i].outputs if t in outputs]
        whole[i] = _hash(forward[i], *ends, *sorted(whole[j] for j in after[i]))
    return whole


def _any_order(before: dict[int, set[int]], after: dict[int, set[int]]) -> list[int]:
    missing = {i: len(s) for i, s in before.items()}
    ready = [i for i, count in missing.items() if not count]
    order: list[int] = []
    while ready:
        i = ready.pop()
        order.append(i)
        for later in after[i]:
            missing[later] -= 1
            if not missing[later]:
                ready.append(later)
    if len(order) != len(before):
        raise InputError("the graph has a cycle: it has no text")
    return order


def _hash(*parts: bytes) -> bytes:
    found = blake2b(digest_size=12)
    for p in parts:
        found.update(len(p).to_bytes(4, "little") + p)
    return found.digest()


def _arguments(node: Node) -> Iterator[tuple[str | None, Any]]:
    """Arguments as (name or None, value); without recorded ones the inputs in order."""
    if not node.args and not node.kwargs:
        yield from ((None, Ref(t)) for t in node.inputs)
        return
    yield from ((None, a) for a in node.args)
    yield from sorted(node.kwargs.items())


def _operands(node: Node) -> list[int]:
    return [r.tensor for _, a in _arguments(node) for r in _refs(a)]


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        values: Any = value
        for v in values:
            yield from _refs(v)


def _attributes(node: Node) -> list[str]:
    return [f"{k or ''}={_plain(a, lambda _: '%')}" for k, a in _arguments(node)]


def _plain(value: Any, named: Any) -> str:
    """An argument as text: tensors by ``named``, equal entries of a list counted."""
    if isinstance(value, Ref):
        return named(value.tensor)
    if isinstance(value, bool):
        return "T" if value else "F"
    if value is None:
        return "-"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return f"{value:.1f}" if whole else f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        values: Any = value
        entries = [_plain(v, named) for v in values]
        same = len(entries) > 1 and len(set(entries)) == 1 and not entries[0].startswith("%")
        return f"[{entries[0]}^{len(entries)}]" if same else f"[{'; '.join(entries)}]"
    if isinstance(value, (int, str)):
        return str(value)
    return str(value).rpartition(".")[2]


class _Namer:
    """Values by the order in which they are first written."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = {t: f"In{i}" for i, t in enumerate(graph.inputs)}
        self.count = 0

    def name(self, tensor: int) -> str:
        t = self.graph.tensors[tensor]
        if tensor not in self.names and t.kind in FIXED:
            return f"{FIXED[t.kind]}[{shape(t)}]"
        return self.names.get(tensor) or self.new(tensor)

    def new(self, tensor: int) -> str:
        if tensor not in self.names:
            self.count += 1
            self.names[tensor] = f"%{self.count}"
        return self.names[tensor]

    def call(self, node: Node, prev: int | None = None) -> str:
        def named(tensor: int) -> str:
            return "prev" if tensor == prev else self.name(tensor)

        inner = [(f"{k}=" if k else "") + _plain(a, named) for k, a in _arguments(node)]
        return f"{short(node.op)}({', '.join(inner)})"


def _nodes(graph: Graph, order: Sequence[Node], namer: _Namer) -> Iterator[str]:
    for n in order:
        call = namer.call(n)
        ends = [f"{namer.new(t)}:{shape(graph.tensors[t])}" for t in n.outputs]
        yield f"{call} = {', '.join(ends)}"


def _chains(graph: Graph, order: Sequence[Node], namer: _Namer) -> Iterator[str]:
    readers: dict[int, int] = {}
    for n in order:
        for t in dict.fromkeys(_operands(n)):
            readers[t] = readers.get(t, 0) + 1
    for t in graph.outputs:
        readers[t] = readers.get(t, 0) + 2  # what is handed out has a name
    next_of = {t: n for n in order for t in _live(graph, n) if len(_live(graph, n)) == 1}
    done: set[int] = set()

    def made(n: Node) -> list[int]:
        """Results that something reads; the first where nothing does."""
        return [t for t in n.outputs if t in readers] or list(n.outputs[:1])

    for n in order:
        if n.index in done:
            continue
        parts, prev, last = [namer.call(n)], n, n
        while len(ends := made(prev)) == 1 and readers.get(ends[0], 0) == 1:
            follower = next_of.get(ends[0])
            if follower is None or follower.index in done:
                break
            parts.append(namer.call(follower, ends[0]))
            done.add(follower.index)
            prev = last = follower
        done.add(n.index)
        named = [f"{namer.new(t)}:{shape(graph.tensors[t])}" for t in made(last)]
        yield f"{ARROW.join(parts)} = {', '.join(named)}"


def _live(graph: Graph, node: Node) -> list[int]:
    """Distinct operands that a run makes or is given: weights left out."""
    found = dict.fromkeys(_operands(node))
    return [t for t in found if graph.tensors[t].kind not in FIXED]


@dataclass(frozen=True)
class Record:
    """One line of ``nodes`` read back: the operator, its arguments and its results' shapes."""

    op: str
    arguments: tuple[str, ...]
    results: tuple[tuple[str, str], ...]


def parse(written: str) -> list[Record]:
    """The operators of a text of mode ``nodes``. Raises ``InputError`` naming the line."""
    found: list[Record] = []
    for number, line in enumerate(written.splitlines(), 1):
        if line.startswith(("In", "Out(")):
            continue
        call, equals, ends = line.rpartition(" = ")
        op, opened, inner = call.partition("(")
        if not equals or not opened or not inner.endswith(")"):
            raise InputError(f"line {number} is no operator: {line[:60]!r}")
        results = tuple((n, s) for n, _, s in (e.partition(":") for e in _split(ends)))
        found.append(Record(op, tuple(_split(inner[:-1])), results))
    return found


def _split(inner: str) -> list[str]:
    return inner.split(", ") if inner else []
