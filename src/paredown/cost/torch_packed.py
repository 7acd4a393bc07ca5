"""Which modules of a captured graph eager and inductor put on torch's packed operators.

The graph shows quantized forms as what they compute; `runtime.torch_lowering` swaps them when a
backend lowers, so a price must foresee it. What an executable did not confirm is priced in floats
afterwards (``unrealised``).
"""

from __future__ import annotations

from paredown.graph.graph import Graph, Node

TORCH = frozenset({"eager", "inductor"})
"""Backends that run forms, not any dequantized product, on packed operators."""

FORMS = frozenset({"QuantLinear", "QuantConv", "DynamicLinear", "MixedInt8Linear"})
"""Class names of the forms that always have an integer operator."""

INT4_GROUPS = (32, 64, 128, 256)
"""Columns to a scale that torch's int4 operator takes."""

INT4_ROWS = 16
"""It takes multiples of this many rows."""


def packed_modules(graph: Graph) -> frozenset[str]:
    """Paths of the modules whose product runs on packed weights."""
    found = {path for path, name in graph.modules.items() if name in FORMS}
    grouped = [n for n in graph.work_nodes() if n.op == "paredown::dequantize_groups"]
    if not grouped:
        return frozenset(found)
    readers: dict[int, set[str]] = {}
    for node in graph.nodes:
        for t in node.inputs:
            readers.setdefault(graph.tensors[t].storage, set()).add(node.module)
    for node in grouped:
        shared = len(readers[graph.tensors[node.inputs[0]].storage]) > 1
        if not shared and _fits(graph, node):
            found.add(node.module)
    return frozenset(found)


def _fits(graph: Graph, node: Node) -> bool:
    packed, scale = (graph.tensors[t] for t in node.inputs[:2])
    weight = graph.tensors[node.outputs[0]]
    rows, columns = weight.shape
    groups = scale.shape[1]
    if packed.shape[1] == columns:
        return groups == 1
    group = columns // groups
    return weight.dtype == "bfloat16" and group in INT4_GROUPS and rows % INT4_ROWS == 0
