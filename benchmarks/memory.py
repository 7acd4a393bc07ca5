"""Arena placement against greedy-by-size: real networks and hard instances, with certificates.

    python benchmarks/memory.py --json benchmarks/results/memory.json

Rows hold the bytes alive at once (the lower bound), greedy-by-size, the arena found, the bound
proven, and the seconds it took. Networks come in program order and in that of the lowest peak
found. Hard: `packed` (a full rectangle cut into buffers: the optimum is the load), `split`
(full at each step; what ends is replaced by another split of the same bytes: the optimum may lie
above the load) and `scattered` (random). Nothing is timed against anything else: seconds are of
one run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paredown import targets
from paredown.cost.arena import Buffer, buffers, dag, lowest, overlaps, place
from paredown.graph.capture import capture
from paredown.measure.fingerprint import fingerprint

NETWORKS = (
    "mobilenetv2", "mobilenetv3-large", "efficientnet-b0", "resnet50", "densenet121",
    "inception-v4", "inception-resnet-v1", "nasnet-a-mobile", "vovnet39", "ghostnetv2-1.0",
    "unet", "convnext-tiny", "vit-s", "swin-tiny", "leyolo-n-320", "overlock-xt",
)  # fmt: skip
MOST = 500
"""Buffers of the largest instance."""


def packed(n: int, steps: int, height: int, seed: int) -> list[Buffer]:
    """A rectangle of steps x bytes cut into ``n`` buffers."""
    r = random.Random(seed)
    pieces = [(0, steps, 0, height)]
    while len(pieces) < n:
        weight = [(b - a) * (high - low) * r.random() for a, b, low, high in pieces]
        i = weight.index(max(weight))
        a, b, low, high = pieces[i]
        if r.random() < 0.5 and b - a > 1:
            cut = r.randint(a + 1, b - 1)
            pieces[i : i + 1] = [(a, cut, low, high), (cut, b, low, high)]
        elif high - low > 1:
            cut = r.randint(low + 1, high - 1)
            pieces[i : i + 1] = [(a, b, low, cut), (a, b, cut, high)]
    r.shuffle(pieces)
    return [Buffer(f"b{i}", a, b, high - low) for i, (a, b, low, high) in enumerate(pieces)]


def split(n: int, height: int, seed: int) -> list[Buffer]:
    """Full at each step; some buffers end and their bytes are split anew."""
    r = random.Random(seed)

    def cut(total: int) -> list[int]:
        parts: list[int] = []
        while total and len(parts) < 3:
            parts.append(r.randint(1, total))
            total -= parts[-1]
        return [*parts, total] if total else parts

    alive, done, t = [(0, s) for s in cut(height)], [], 0
    while len(done) + len(alive) < n:
        t += 1
        r.shuffle(alive)
        ends = r.randint(1, min(len(alive), 4))
        done += [(a, t, s) for a, s in alive[:ends]]
        alive = alive[ends:] + [(t, s) for s in cut(sum(s for _, s in alive[:ends]))]
    done += [(a, t + 1, s) for a, s in alive]
    return [Buffer(f"b{i}", *row) for i, row in enumerate(done)]


def scattered(n: int, steps: int, most: int, seed: int) -> list[Buffer]:
    """Random starts, exponential lifetimes, random sizes."""
    r = random.Random(seed)
    found: list[Buffer] = []
    for i in range(n):
        a = r.randrange(steps)
        b = min(steps, a + 1 + int(r.expovariate(10 / steps)))
        found.append(Buffer(f"b{i}", a, b, r.randint(1, most)))
    return found


def instances(seeds: int, names: tuple[str, ...]) -> Iterator[tuple[str, str, list[Buffer]]]:
    """``(family, name, buffers)``; a network with more than `MOST` buffers is told apart."""
    for name in names:
        graph = capture(targets.resolve(f"zoo:{name}"))
        found = buffers(graph)
        family = "network" if len(found) <= MOST else f"network of over {MOST} buffers"
        yield family, name, found
        order = lowest(dag(graph), states=500)
        proof = "lowest" if order.optimal else "low"
        yield f"{family}, reordered", f"{name}, {proof} peak", buffers(graph, order.nodes)
    for n in (20, 50, 100, 200, 500):
        for seed in range(seeds):
            yield "packed", f"packed {n} #{seed}", packed(n, n, 1 << 20, seed)
            yield "split", f"split {n} #{seed}", split(n, 1 << 10, seed)
            yield "scattered", f"scattered {n} #{seed}", scattered(n, n // 2, 1 << 16, seed)


def row(family: str, name: str, given: list[Buffer], seconds: float) -> dict[str, Any]:
    """Place one instance and check the result."""
    start = time.perf_counter()
    found = place(given, seconds=seconds)
    took = time.perf_counter() - start
    if overlaps(given, found.offsets):
        raise SystemExit(f"{name}: buffers overlap")
    if not found.load <= found.bound <= found.height <= found.greedy_height:
        raise SystemExit(f"{name}: worse than greedy-by-size, or below a bound")
    return {
        "family": family,
        "name": name,
        "buffers": len(given),
        "load_bytes": found.load,
        "greedy_bytes": found.greedy_height,
        "arena_bytes": found.height,
        "bound_bytes": found.bound,
        "certificate": found.how,
        "proof": found.proof,
        "nodes": found.nodes,
        "seconds": round(took, 4),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per family: how many are proven, the excess of greedy and of ours over the bound."""
    found: list[dict[str, Any]] = []
    for family in [*dict.fromkeys(r["family"] for r in rows), "all"]:
        mine = [r for r in rows if family in ("all", r["family"])]
        found.append(
            {
                "family": family,
                "instances": len(mine),
                "optimal": sum(r["certificate"] == "optimal" for r in mine),
                "greedy_excess_mean": excess(mine, "greedy_bytes"),
                "arena_excess_mean": excess(mine, "arena_bytes"),
                "seconds_median": statistics.median(r["seconds"] for r in mine),
                "seconds_max": max(r["seconds"] for r in mine),
            }
        )
    return found


def excess(rows: list[dict[str, Any]], key: str) -> float:
    """Mean share by which a height exceeds the proven bound."""
    return round(statistics.fmean(r[key] / r["bound_bytes"] - 1 for r in rows), 5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of search per instance")
    parser.add_argument("--seeds", type=int, default=3, help="of each hard instance")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="names of the zoo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for family, name, given in instances(options.seeds, tuple(options.networks)):
        rows.append(row(family, name, given, options.seconds))
        r = rows[-1]
        print(
            f"{name}: {r['buffers']} buffers, load {r['load_bytes']}, greedy {r['greedy_bytes']}, "
            f"arena {r['arena_bytes']} ({r['certificate']}), {r['seconds']:.2f} s",
            flush=True,
        )
    table = summary(rows)
    for line in table:
        print(
            f"{line['family']:>34}: {line['optimal']}/{line['instances']} optimal, greedy "
            f"+{line['greedy_excess_mean']:.1%}, ours +{line['arena_excess_mean']:.1%} over the "
            f"bound, median {line['seconds_median']:.2f} s, most {line['seconds_max']:.1f} s"
        )
    if options.json:
        body = {
            "schema": 1,
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.date.today().isoformat(),
            "machine": fingerprint(probe=False).model_dump(),
            "seconds_allowed": options.seconds,
            "summary": table,
            "rows": rows,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
