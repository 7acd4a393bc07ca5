"""Operator rules: a table from operator name to logical work and bytes. No rule, no price.

`annotate` fills every node of a graph. Views and metadata operators stand in an explicit table
(`views`) and cost nothing; an operator in no table is left unpriced (``macs`` None), never zero.
"""

from __future__ import annotations

from paredown.graph.graph import Graph, Node
from paredown.graph.rules import (
    attention,
    conv,
    matmul,
    moves,
    optimizer,
    pointwise,
    quantized,
    reduce,
)
from paredown.graph.rules.call import Call, Rule, Unpriceable, Work
from paredown.graph.rules.views import VIEWS

FAMILIES: dict[str, dict[str, Rule]] = {
    "conv": {**conv.CONV, **quantized.CONV},
    "linear": {**matmul.LINEAR, **quantized.LINEAR},
    "matmul": matmul.MATMUL,
    "attention": attention.ATTENTION,
    "recurrent": {**attention.RECURRENT, **quantized.RECURRENT},
    "elementwise": {**pointwise.ELEMENTWISE, **quantized.POINTWISE},
    "optimizer": optimizer.OPTIMIZER,
    "norm": reduce.NORM,
    "reduction": reduce.REDUCTION,
    "pool": reduce.POOL,
    "resample": reduce.RESAMPLE,
    "scatter": reduce.SCATTER,
    "transform": reduce.FFT,
    "creation": moves.CREATION,
    "copy": moves.COPY,
}
"""Kind of operator -> its rules. The kind also picks the efficiency in `cost`."""

RULES: dict[str, Rule] = {op: rule for rules in FAMILIES.values() for op, rule in rules.items()}
KINDS: dict[str, str] = {op: kind for kind, rules in FAMILIES.items() for op in rules}

_FREE = Work(read=0, written=0)


def canonical(op: str) -> str:
    """The name that the tables know: foreach and in-place forms become the plain one."""
    if op in RULES or op in VIEWS:
        return op
    namespace, _, name = op.partition("::")
    name = name.removeprefix("_foreach_")
    for form in (name, name.removesuffix("_")):
        plain = f"{namespace}::{form}"
        if plain in RULES or plain in VIEWS:
            return plain
    return op


def kind(op: str) -> str:
    """The family of an operator: ``conv``, ``linear`` ... ``view``, or ``unknown``."""
    name = canonical(op)
    return "view" if name in VIEWS else KINDS.get(name, "unknown")


def rule(op: str) -> Rule | None:
    """The rule of an operator, None when no table knows it or it is free."""
    return RULES.get(canonical(op))


def annotate(graph: Graph) -> Graph:
    """Fill work and bytes of every node in place; returns the graph."""
    for node in graph.nodes:
        _price(node, graph)
    return graph


def _price(node: Node, graph: Graph) -> None:
    call = Call(node, graph)
    name = canonical(node.op)
    if name in VIEWS or _aliases(call, name):
        node.view, node.priced, node.macs = True, True, 0
        node.work, node.bytes_read, node.bytes_written = {}, 0, 0
        return
    node.bytes_read, node.bytes_written = call.read_all(), call.written_all()
    found = RULES.get(name)
    if found is None:
        _unpriced(node, f"no rule for {node.op}")
        return
    try:
        work = found(call)
    except (Unpriceable, IndexError, TypeError, KeyError) as e:
        _unpriced(node, f"{node.op} was called in a form its rule does not know: {e}")
        return
    node.priced, node.why, node.macs = True, None, work.macs
    counts = (
        ("macs", work.macs),
        ("elementwise", work.elementwise),
        ("transcendental", work.transcendental),
        ("compare", work.compare),
    )
    node.work = {k: v for k, v in counts if v}
    if work.read is not None:
        node.bytes_read = work.read
    if work.written is not None:
        node.bytes_written = work.written


def _aliases(call: Call, name: str) -> bool:
    """Whether a call that can copy (``contiguous``, ``to``) handed its own input back."""
    return (
        name in ("aten::contiguous", "aten::to", "aten::_to_copy", "aten::pin_memory")
        and len(call.outs) == 1
        and bool(call.ins)
        and call.outs[0].storage == call.ins[0].storage
    )


def _unpriced(node: Node, why: str) -> None:
    node.priced, node.macs, node.why, node.work = False, None, why, {}


__all__ = ["FAMILIES", "RULES", "VIEWS", "annotate", "canonical", "kind", "rule"]
