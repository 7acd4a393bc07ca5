"""Write docs/matrix.json: every ordered pair of techniques on a small CNN, ViT and decoder.

    python scripts/matrix.py [--out docs/matrix.json] [--new]

``--new`` keeps the cells of pairs whose settings and touches are as recorded and runs the others.
Exit 1 when a pair is broken: neither sound outputs nor a stated reason.
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from paredown import registry
from paredown.technique import Technique
from paredown.testing.matrix import Cell, cells
from paredown.testing.networks import NETWORKS

SETTINGS = {
    "recover": {"steps": 6},
    "trained-low-rank": {"steps": 4},
    "cross-distillation": {"steps": 3},
    "qfx": {"steps": 4},
    "mst-bnn": {"steps": 4},
    "accllm": {"group_size": 16},
    "nm-training": {"steps": 4},
    "consensus": {"steps": 4},
    "qlora": {"steps": 4},
    "early-exit": {"steps": 4},
    "hard-to-easy": {"steps": 4},
    "adaptive-computation": {"steps": 3, "layer_steps": 2},
    "quantized-distillation": {"steps": 4},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/matrix.json"))
    parser.add_argument("--new", action="store_true", help="run only pairs not recorded yet")
    given = parser.parse_args()
    out = given.out
    torch.set_num_threads(1)
    techniques = {n: registry.make(n, SETTINGS.get(n)) for n in sorted(registry.classes())}

    def say(cell: Cell) -> None:
        print(
            f"{cell.network:8} {cell.first:20} {cell.second:20} {cell.outcome} {cell.detail}",
            file=sys.stderr,
        )

    started = time.monotonic()
    said = {n: described(t) for n, t in techniques.items()}
    kept = recorded(out, said) if given.new else {}
    found = list(kept.values())
    for network in NETWORKS:
        pairs = itertools.product(techniques, repeat=2)
        missing = [p for p in pairs if (network, *p) not in kept]
        found += cells(techniques, missing, [network], progress=say)
    order = list(itertools.product(NETWORKS, techniques, techniques))
    found.sort(key=lambda c: order.index((c.network, c.first, c.second)))
    counts = Counter(c.outcome for c in found)
    document = {
        "schema": 1,
        "what": "each row: `first` applied, then `second`, in this very order",
        "techniques": said,
        "counts": dict(counts),
        "cells": [asdict(c) for c in found],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{out}: {dict(counts)} in {time.monotonic() - started:.0f} s")
    return 1 if counts["broken"] else 0


def described(technique: Technique) -> dict[str, Any]:
    """What a technique's cells depend on, as the document holds it."""
    said = {
        "stage": technique.stage.name.lower(),
        "settings": technique.settings(),
        "touches": sorted(x.value for x in technique.touches),
    }
    return json.loads(json.dumps(said))


def recorded(path: Path, said: dict[str, Any]) -> dict[tuple[str, str, str], Cell]:
    """The sound or refused cells of a document whose two techniques are still what they were."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    same = {n for n, d in document["techniques"].items() if said.get(n) == d}
    old = [Cell(**c) for c in document["cells"]]
    return {
        (c.network, c.first, c.second): c
        for c in old
        if {c.first, c.second} <= same and c.outcome != "broken" and c.network in NETWORKS
    }


if __name__ == "__main__":
    sys.exit(main())
