"""Write docs/matrix.json: every ordered pair of techniques on a small CNN, ViT and decoder.

    python scripts/matrix.py [--out docs/matrix.json]

Exit 1 when a pair is broken: neither sound outputs nor a stated reason.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from paredown import registry
from paredown.testing.matrix import Cell, cells

SETTINGS = {"recover": {"steps": 6}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/matrix.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    techniques = {n: registry.make(n, SETTINGS.get(n)) for n in sorted(registry.classes())}

    def say(cell: Cell) -> None:
        print(
            f"{cell.network:8} {cell.first:20} {cell.second:20} {cell.outcome} {cell.detail}",
            file=sys.stderr,
        )

    started = time.monotonic()
    found = list(cells(techniques, progress=say))
    counts = Counter(c.outcome for c in found)
    document = {
        "schema": 1,
        "what": "each row: `first` applied, then `second`, in this very order",
        "techniques": {
            n: {
                "stage": t.stage.name.lower(),
                "settings": t.settings(),
                "touches": sorted(x.value for x in t.touches),
            }
            for n, t in techniques.items()
        },
        "counts": dict(counts),
        "cells": [asdict(c) for c in found],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{out}: {dict(counts)} in {time.monotonic() - started:.0f} s")
    return 1 if counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
