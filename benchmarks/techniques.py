"""`pare down` with this benchmark's families of techniques and without; ours against peers.

    python benchmarks/techniques.py [--part families|peers] [--scale quick] [--networks A,B]
        [--rows mobile/latency,...] [--metrics score,size] [--minutes 20]
        --json benchmarks/results/techniques.json

What is run and asked stands in techniques.yaml, written before the first result. Each row is
written as soon as it is done, and a later run does those that are missing: none of another machine,
scale or techniques.yaml is taken over. Where a peer cannot be imported or run, its rows say so.
Scores and sizes of peers' rows do not depend on how busy the machine is: `--metrics` takes them
apart from latencies.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import technique_check
import technique_families
import technique_nets
import technique_peers
import torch
from technique_results import Book, line, peers_summary, read_plan, summary

from paredown.errors import ParedownError


def asserted(networks: list[str], book: Book) -> dict[str, technique_check.Fitness]:
    """How fit each network is, read from rows of the same plan where there are; exits with all
    that are not.
    """
    plan = book.plan
    known = {
        network_of(part, r["row"]): technique_check.Fitness(**r["fit"])
        for part, rows in book.rows.items()
        for r in rows
    }
    found = {
        n: known[n] if n in known else technique_check.fitness(technique_nets.NETWORKS[n]())
        for n in networks
    }
    why = {n: f.why_not(plan["fit"]) for n, f in found.items()}
    bad = [f"{n} {w}" for n, w in why.items() if w is not None]
    if bad:
        sys.exit("not fit to tell techniques apart: " + "; ".join(bad))
    return found


def names(plan: dict[str, Any], part: str, networks: list[str]) -> list[str]:
    """All rows of a part, budget by budget or peer by peer."""
    if part == "families":
        return [f"{n}/{b}" for b in plan["budgets"] for n in plan["networks"] if n in networks]
    return [f"{p}/{n}" for p, x in plan["peers"].items() for n in x["networks"] if n in networks]


def network_of(part: str, row: str) -> str:
    return row.split("/")[0 if part == "families" else 1]


def lacking(book: Book, row: str, only: list[str] | None, again: bool) -> tuple[str, ...]:
    """Metrics that a peer's row still lacks, of those asked for; all of them ``again``."""
    metrics = book.plan["peers"][row.split("/")[0]]["metrics"]
    asked = [m for m in metrics if only is None or m in only]
    return tuple(asked) if again else book.lacks(row, asked)


def families_row(row: str, plan: dict[str, Any], real_time: bool) -> dict[str, Any]:
    return technique_families.row(row, plan, real_time)


def peers_row(
    row: str,
    plan: dict[str, Any],
    options: argparse.Namespace,
    wanted: Callable[[str], tuple[str, ...]],
) -> dict[str, Any]:
    return technique_peers.row(row, plan, wanted(row), options.real_time, options.limit)


def run(book: Book, part: str, rows: list[str], row: Callable[[str], dict], minutes: float) -> None:
    """Every row that is missing, until the minutes are over."""
    end = time.monotonic() + 60 * minutes
    left = [r for r in rows if part == "peers" or not book.has(part, r)]
    fit = asserted(sorted({network_of(part, r) for r in left}), book)
    for name in left:
        if time.monotonic() > end:
            print("time is up before", name)
            return
        start, load = time.monotonic(), os.getloadavg()[0]
        try:
            found = row(name)
        except ParedownError as e:
            found = {"failed": f"{type(e).__name__}: {e}"}
        found |= {
            "row": name,
            "scale": book.scale,
            "plan": book.plan["hash"],
            "effort": book.plan.get("effort"),
            "fit": asdict(fit[network_of(part, name)]),
            "load_before": load,
            "load_after": os.getloadavg()[0],
            "seconds": round(time.monotonic() - start, 1),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
        }
        book.add(part, found)
        print(line(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=("families", "peers"), default="families")
    parser.add_argument("--scale", default="quick", choices=("quick", "full"))
    parser.add_argument("--networks", help="only these, by commas")
    parser.add_argument("--rows", help="only these, by commas: NETWORK/BUDGET or PEER/NETWORK")
    parser.add_argument("--metrics", help="only these of peers' rows, by commas")
    parser.add_argument("--again", action="store_true", help="peers' rows that are there too")
    parser.add_argument("--limit", type=float, default=600, help="seconds a peer's row may take")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no row after so many"
    )
    parser.add_argument("--real-time", action="store_true", help="time at real-time priority")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = read_plan(options.scale)
    chosen = options.networks.split(",") if options.networks else list(plan["networks"])
    rows = names(plan, options.part, chosen)
    if options.rows:
        rows = [r for r in rows if r in options.rows.split(",")]
    book = Book.open(options.json, plan, options.scale)
    torch.set_num_threads(plan["threads"])
    only = options.metrics.split(",") if options.metrics else None
    make = partial(families_row, plan=plan, real_time=options.real_time)
    if options.part == "peers":
        wanted = partial(lacking, book, only=only, again=options.again)
        rows = [r for r in rows if wanted(r)]
        make = partial(peers_row, plan=plan, options=options, wanted=wanted)
    run(book, options.part, rows, make, options.minutes)
    if options.json:
        # Another run may have added rows since this one's last.
        book = Book.open(options.json, plan, options.scale)
    book.write()
    print(
        summary(book.rows["families"], plan, options.scale)
        if options.part == "families"
        else peers_summary(book.rows["peers"], plan)
    )


if __name__ == "__main__":
    main()
