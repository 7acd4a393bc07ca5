"""What a run in patches allocates and computes, counted from the stage's program.

Peak = the larger of: what one tile holds at once + the tiles of its row that are done + the rows
that are done; the rows and their joint result; what the layers behind the stage hold (MCUNetV2,
arXiv:2110.15352, section 3.1). Extra work = what all tiles compute / what the whole stage computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from paredown.graph.graph import Graph
from paredown.graph.liveness import liveness
from paredown.runtime.patches import Schedule, Walk
from paredown.techniques.schedule.stages import Cut


@dataclass(frozen=True)
class Cost:
    """Bytes that a run allocates at most, and multiply-accumulates: of the stage whole, in
    patches, and of the whole network as it was.
    """

    peak: int
    stage_macs: int
    patched_macs: int
    all_macs: int

    @property
    def overhead(self) -> float:
        """Share of the network's multiply-accumulates that is computed again."""
        return (self.patched_macs - self.stage_macs) / max(self.all_macs, 1)


def cost(graph: Graph, cut: Cut, tiles: int, after: int | None = None) -> Cost:
    """Price one cut in ``tiles`` by ``tiles`` patches; ``after`` is `later` where it is known.

    Raises ``InputError`` for too many tiles.
    """
    stage = cut.stage
    _, _, height, width = graph.tensors[stage.start].shape
    rows, columns = Schedule(stage, tiles).walks(height, width)
    whole = graph.tensors[stage.end].nbytes
    each = [_tile(graph, cut, r, c) for r in rows for c in columns]
    band = whole / len(rows)
    inside = max(each) + whole + band
    after = later(graph, cut) if after is None else after
    plain, patched = _work(graph, cut, rows, columns)
    return Cost(int(max(inside, 2 * whole, after)), plain, patched, graph.macs)


def overhead(graph: Graph, cut: Cut, tiles: int) -> float:
    """Share of the network's multiply-accumulates that is computed again."""
    _, _, height, width = graph.tensors[cut.stage.start].shape
    plain, patched = _work(graph, cut, *Schedule(cut.stage, tiles).walks(height, width))
    return (patched - plain) / max(graph.macs, 1)


def later(graph: Graph, cut: Cut) -> int:
    """The most bytes that what follows the stage holds.

    Maps of the stage that the model's own code keeps (a first map is held by its caller's frame)
    are none in patches.
    """
    kept = graph.tensors[cut.stage.end].storage
    gone = {s.id for s in graph.storages.values() if 0 <= s.created <= cut.end and s.id != kept}
    found = liveness(graph, gone)
    return max((held for i, held in found.timeline if i > cut.end), default=0)


def _share(graph: Graph, t: int, r: Walk, c: Walk) -> float:
    _, _, height, width = graph.tensors[t].shape
    (top, bottom), (left, right) = r.need[t], c.need[t]
    return (bottom - top) * (right - left) / (height * width)


def _tile(graph: Graph, cut: Cut, r: Walk, c: Walk) -> float:
    """The most bytes that one tile's own maps take at once; the image is the caller's."""
    stage = cut.stage
    last = {t: i for i, op in enumerate(stage.ops) for t in op.reads}
    held: dict[int, float] = {}
    most = 0.0
    for i, op in enumerate(stage.ops):
        if not op.tiled or op.out not in r.need:
            continue
        size = graph.tensors[op.out].nbytes * _share(graph, op.out, r, c)
        first = op.reads[0]
        if op.in_place and first in held and last[first] == i:
            del held[first]
        held[op.out] = size
        padded = 0.0
        if op.windows and any((*r.padding[op.out], *c.padding[op.out])) and first in held:
            padded = held[first]
        most = max(most, sum(held.values()) + padded)
        for t in op.reads:
            if last[t] == i:
                held.pop(t, None)
    return most


def _work(graph: Graph, cut: Cut, rows: list[Walk], columns: list[Walk]) -> tuple[int, int]:
    """Multiply-accumulates of the stage whole, and summed over its tiles."""
    plain = patched = 0
    for index, op in zip(cut.nodes, cut.stage.ops, strict=True):
        macs = graph.nodes[index].macs or 0
        plain += macs
        if not op.tiled:
            patched += macs
        elif op.out in rows[0].need and macs:
            _, _, height, width = graph.tensors[op.out].shape
            high = sum(b - a for a, b in (r.need[op.out] for r in rows))
            wide = sum(b - a for a, b in (c.need[op.out] for c in columns))
            patched += macs * high * wide // (height * width)
    return plain, patched
