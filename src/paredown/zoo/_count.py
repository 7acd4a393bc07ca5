"""Parameters and MACs of every network by our own graph; `counts.json` keeps them without torch.

``scripts/zoo.py`` writes the file, a test holds that every count in it is the one made anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from paredown.result import ZooRow
from paredown.zoo._table import create, example, names, variant

COUNTS = Path(__file__).with_name("counts.json")


def rows() -> list[ZooRow]:
    """Every network, with the counts kept in the file; one that is not in it is counted now."""
    kept = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
    return [_row(name, *(kept.get(name) or count(name))) for name in names()]


def row(name: str) -> ZooRow:
    """One network, counted now. Raises ``UnknownName``."""
    variant(name)
    return _row(name, *count(name))


@cache
def count(name: str) -> tuple[int, int]:
    """Parameters and MACs of one run at the paper's input, batch 1; allocates no weights.

    Raises ``MeasurementError`` where an operator has no rule, as its work is then unknown.
    """
    import torch

    from paredown.errors import MeasurementError
    from paredown.graph.capture import capture
    from paredown.workload import Workload

    with torch.device("meta"):
        model = create(name).eval()
    graph = capture(Workload(model, example(name), name=name))
    if graph.unpriced:
        raise MeasurementError(f"zoo:{name}: no rule for {', '.join(graph.unpriced)}")
    params = sum(p.numel() for p in model.parameters())
    return params, sum(node.macs or 0 for node in graph.nodes)


def _row(name: str, params: int, macs: int) -> ZooRow:
    v = variant(name)
    frames = () if v.frames is None else (v.frames,)
    return ZooRow(
        name=name,
        paper=v.paper,
        input=[v.in_channels, *frames, v.image_size, v.image_size],
        params=params,
        macs=macs,
        paper_params=v.paper_params,
        paper_macs=v.paper_macs,
        source=v.source,
        why=v.why or None,
    )
