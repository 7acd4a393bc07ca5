"""Bytes of activations on a device that overwrites what it can, layer by layer and in patches.

MCUNetV2 (arXiv:2110.15352) counts so: norms and activations are part of the layer before them, a
depthwise convolution overwrites its input channel by channel (at stride 2 too), a residual is added
into its sum, a tile's result is written where it belongs. With int8 activations MobileNetV2 at 224
pixels needs 1372 KiB layer by layer and 171.5 KiB in 4 x 4 patches of its first four blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from paredown.graph import rules
from paredown.graph.graph import Graph, Node
from paredown.runtime.patches import BATCH_NORM, CONV, Op, Schedule, Walk
from paredown.techniques.schedule.stages import Cut


@dataclass(frozen=True)
class Layer:
    """What an operator reads and makes, and which of the former its result may overwrite."""

    reads: tuple[int, ...]
    out: int
    into: tuple[int, ...] = ()
    adds: bool = False


def high_water(layers: Iterable[Layer], size: Mapping[int, float], kept: Iterable[int]) -> float:
    """The most that maps of ``size`` take at once; ``kept`` are never freed."""
    todo = _summed(list(layers))
    last = {t: i for i, layer in enumerate(todo) for t in layer.reads}
    last |= dict.fromkeys(kept, len(todo))
    held: dict[int, float] = {}
    most = 0.0
    for i, layer in enumerate(todo):
        for t in layer.reads:
            # What the caller gave is there from the start.
            held.setdefault(t, size[t])
        inside = any(last[t] == i and size[t] >= size[layer.out] for t in layer.into)
        most = max(most, sum(held.values()) + (0 if inside else size[layer.out]))
        for t in layer.reads:
            if last[t] == i:
                held.pop(t, None)
        held[layer.out] = size[layer.out]
    return most


def _summed(layers: list[Layer]) -> list[Layer]:
    """Sums as part of the product before them, which adds into what they add."""
    out: list[Layer] = []
    uses = Counter(t for layer in layers for t in layer.reads)
    for layer in layers:
        at = None
        for mine in layer.reads if layer.adds and len(layer.reads) == 2 else ():
            other = next(t for t in layer.reads if t != mine)
            at = _product(out, mine, uses)
            if at is not None and all(other != x.out for x in out[at:]):
                out[at:] = [Layer((*out[at].reads, other), layer.out, (other,))]
                break
            at = None
        if at is None:
            out.append(layer)
    return out


def _product(layers: list[Layer], made: int, uses: Counter[int]) -> int | None:
    """Where the product stands that ``made`` is, behind norms and activations of its own."""
    for at in range(len(layers) - 1, -1, -1):
        layer = layers[at]
        if layer.out != made or uses[made] != 1:
            return None
        if not layer.into:
            return at
        made = layer.reads[0]
    return None


def layerwise(graph: Graph, width: int = 1, start: int = 0) -> int:
    """Bytes of a whole run with ``width`` bytes per value, from node ``start`` on."""
    nodes = [n for n in graph.nodes if n.index >= start and not n.view and n.inputs and n.outputs]
    size = {t.id: float(width * prod(t.shape)) for t in graph.tensors.values()}
    image = set(graph.inputs)
    for node in graph.nodes:
        if any(t in image for t in node.inputs):
            image.update(node.outputs)
    made = graph.producers()

    def base(t: int) -> int:
        while (node := made.get(t)) is not None and node.view and node.inputs:
            t = node.inputs[0]
        return t

    layers = [
        _layer(n, tuple(dict.fromkeys(base(t) for t in n.inputs if t in image)), graph)
        for n in nodes
    ]
    return int(high_water((x for x in layers if x.reads), size, map(base, graph.outputs)))


def patched(graph: Graph, cut: Cut, tiles: int, width: int = 1) -> int:
    """Bytes of the same run with its early stage in patches; the image is streamed in by tile."""
    stage = cut.stage
    _, _, height, wide = graph.tensors[stage.start].shape
    rows, columns = (_unlike(w) for w in Schedule(stage, tiles).walks(height, wide))
    whole = width * prod(graph.tensors[stage.end].shape)
    layers = [
        _layer(graph.nodes[i], op.reads, graph)
        for op, i in zip(stage.ops, cut.nodes, strict=True)
        if op.tiled and op.out in rows[0].need
    ]
    sizes = [_sizes(graph, stage.ops, stage.start, r, c, stage.end, width)
             for r in rows for c in columns]  # fmt: skip
    tile = max(high_water(layers, size, []) for size in sizes)
    return int(max(tile + whole, layerwise(graph, width, cut.end + 1)))


def _unlike(walks: Iterable[Walk]) -> list[Walk]:
    """One of each kind: tiles inside the image need alike much."""
    kinds = {tuple(b - a for a, b in w.need.values()): w for w in walks}
    return list(kinds.values())


def _sizes(
    graph: Graph, ops: Iterable[Op], start: int, r: Walk, c: Walk, end: int, width: int
) -> dict[int, float]:
    """A tile's part of every map; its result lies in the whole one, its input is the caller's."""
    out: dict[int, float] = {start: 0.0}
    for op in ops:
        if op.tiled and op.out in r.need:
            n, channels, _, _ = graph.tensors[op.out].shape
            (top, bottom), (left, right) = r.need[op.out], c.need[op.out]
            out[op.out] = float(width * n * channels * (bottom - top) * (right - left))
    out[end] = 0.0
    return out


def _layer(node: Node, reads: tuple[int, ...], graph: Graph) -> Layer:
    out = node.outputs[0]
    if node.op == CONV:
        weight = graph.tensors[node.inputs[1]].shape
        depthwise = node.args[8] == weight[0] and weight[1] == 1
        return Layer(reads, out, reads if depthwise else ())
    same = node.op == BATCH_NORM or rules.kind(node.op) == "elementwise"
    return Layer(reads, out, reads if same else (), rules.canonical(node.op) == "aten::add")
