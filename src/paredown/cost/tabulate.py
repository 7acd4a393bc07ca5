"""A priced graph as rows: operators, modules, memory over time, and the share that was priced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paredown import figure
from paredown.figure import Figure
from paredown.graph.graph import Graph, Node
from paredown.result import MemoryPoint, ModuleRow, OperatorRow, PricedShare

if TYPE_CHECKING:
    from paredown.cost.price import Cost, Priced

Seconds = dict[int, float]
"""Measured self time by node index."""


def operators(priced: Priced, measured: Seconds | None = None) -> list[OperatorRow]:
    """One row per operator that does or moves something."""
    return [_row(priced, c, (measured or {}).get(c.run.node.index)) for c in priced.costs]


def _row(priced: Priced, c: Cost, seconds: float | None) -> OperatorRow:
    node = c.run.node
    moved = c.run.weight_bytes + c.run.read + c.run.written
    known = node.priced
    reason = node.why or "unpriced"
    taken = (
        figure.measured(seconds, "s")
        if seconds is not None
        else figure.unavailable("s", "not measured")
    )
    predicted: Figure = (
        figure.predicted(c.seconds, "s") if known else figure.unavailable("s", reason)
    )
    shown = seconds if seconds is not None else c.seconds
    return OperatorRow(
        index=node.index,
        op=node.op,
        module=node.module,
        line=node.line,
        phase=node.phase,
        shapes=[list(priced.graph.tensors[t].shape) for t in (*node.inputs, *node.outputs)],
        dtype=c.run.dtype,
        macs=node.macs,
        bytes_read=c.run.read + c.run.weight_bytes,
        bytes_written=c.run.written,
        intensity=(node.macs or 0) / moved if known and moved else None,
        bound=c.bound,
        ideal_s=c.ideal_s if known else None,
        predicted_s=predicted,
        measured_s=taken,
        gap_s=shown - c.ideal_s if known else None,
    )


def modules(priced: Priced, measured: Seconds | None = None) -> list[ModuleRow]:
    """One row per module that ran something, children included; the root has path ``""``."""
    macs: dict[str, int] = {}
    moved: dict[str, int] = {}
    seconds: dict[str, float] = {}
    taken: dict[str, float] = {}
    for c in priced.costs:
        own = c.run.node
        for path in _up(own.module):
            macs[path] = macs.get(path, 0) + (own.macs or 0)
            total = c.run.weight_bytes + c.run.read + c.run.written
            moved[path] = moved.get(path, 0) + total
            seconds[path] = seconds.get(path, 0.0) + c.seconds
            if measured and own.index in measured:
                taken[path] = taken.get(path, 0.0) + measured[own.index]
    params = _params(priced.graph)
    base = (taken if measured else seconds).get("", 0.0)
    return [
        ModuleRow(
            path=path,
            cls=cls,
            macs=macs[path],
            params=params.get(path, 0),
            bytes=moved[path],
            predicted_s=seconds[path],
            measured_s=taken.get(path),
            share=(taken if measured else seconds).get(path, 0.0) / base if base else None,
        )
        for path, cls in priced.graph.modules.items()
        if path in macs
    ]


def _up(path: str) -> list[str]:
    """A module path and those of everything it is inside, down to the root."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _params(graph: Graph) -> dict[str, int]:
    """Parameters by module path, children included; a tied one counts once in each module."""
    seen: dict[str, dict[int, int]] = {}
    weights = graph.weights()
    for t in graph.tensors.values():
        if t.kind == "parameter" and t.name:
            for path in _up(t.name.rpartition(".")[0]):
                seen.setdefault(path, {})[t.storage] = weights[t.storage]
    return {path: sum(sizes.values()) for path, sizes in seen.items()}


def memory(priced: Priced) -> list[MemoryPoint]:
    """Live bytes while each node runs, weights included."""
    live = priced.lifetimes
    return [MemoryPoint(index=i, live_bytes=live.weights + b) for i, b in live.timeline]


def priced_share(graph: Graph, measured: Seconds | None = None) -> PricedShare:
    """Share of operators, bytes and measured time that has a rule; views stand outside."""
    nodes = list(graph.work_nodes())
    moved = {n.index: _bytes(graph, n) for n in nodes}
    time = None
    if measured:
        base = sum(measured.get(n.index, 0.0) for n in nodes)
        good = sum(measured.get(n.index, 0.0) for n in nodes if n.priced)
        time = good / base if base else None
    total = sum(moved.values())
    return PricedShare(
        operators=sum(n.priced for n in nodes) / len(nodes) if nodes else 1.0,
        bytes=sum(moved[n.index] for n in nodes if n.priced) / total if total else 1.0,
        time=time,
    )


def _bytes(graph: Graph, node: Node) -> int:
    """Bytes of inputs and outputs: known for every operator, with or without a rule."""
    return sum(graph.tensors[t].nbytes for t in (*set(node.inputs), *node.outputs))
