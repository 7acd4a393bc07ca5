"""Pairs of CUDA-like and C++ texts, and the score of what translates the one to the other.

    python benchmarks/transpile.py --pairs pairs.jsonl [--only softmax,product] [--graphs 10]
        [--trials 10] [--seed 0]
    python benchmarks/transpile.py --pairs pairs.jsonl --score [--translator file.py:function]
        [--threads 1,2] [--seconds 0.4] --json FILE

The first makes pairs (HPCTransCompile, arXiv:2506.10401) and keeps them, one JSON line each. The
second scores a translator, ``function(text) -> text``, on them: compiled, right, and its time over
that of the tuned C++; without ``--translator`` the translation by rule. A translation runs in a
process of its own; whose translator it is, is the user's to trust.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from paredown.errors import InputError, ParedownError
from paredown.kernels.loops import transpile
from paredown.measure.fingerprint import fingerprint
from paredown.testing.bench.backends import function_of
from paredown.testing.transpile import (
    evaluate,
    grow,
    make_pair,
    read_pairs,
    subject,
    summary,
    write_pairs,
    written,
)


def make(args: argparse.Namespace) -> None:
    machine = fingerprint(probe=False).key
    sources = [*(args.only or written()), *(grow(args.seed + n) for n in range(args.graphs))]
    pairs = []
    for source in sources:
        pair = make_pair(
            subject(source), trials=args.trials, seed=args.seed, threads=args.threads[0],
            machine=machine,
        )  # fmt: skip
        pairs.append(pair)
        worst = max(pair.errors.values())
        print(f"{pair.name:24} {1e6 * pair.seconds:9.1f} us, {pair.trials} trials, off {worst:.1e}")
    print(f"{len(pairs)} pairs in {write_pairs(args.pairs, pairs)}")


def score(args: argparse.Namespace) -> None:
    translate, name = transpile, "by rule"
    if args.translator:
        name, translate = args.translator, function_of(args.translator)
    rows = evaluate(
        translate, read_pairs(args.pairs), name=name, threads=args.threads, seconds=args.seconds,
        say=lambda r: print(f"{r['task']:24} {r['outcome']:10} {r['reason']}"),
    )  # fmt: skip
    found = summary(rows)
    print(f"{found['pairs']} pairs, compiled {found['compile']:.0%}, right {found['correct']:.0%}")
    for count, ratios in found["ratios"].items():
        print(f"{count} threads: takes {ratios['translated']:.2f}x the tuned time, "
              f"eager {ratios['eager']:.2f}x")  # fmt: skip
    if args.json:
        machine = fingerprint().model_dump(mode="json")
        document = {"schema": 1, "machine": machine, "summary": found, "rows": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--only", default="", type=lambda s: [p for p in s.split(",") if p])
    parser.add_argument("--graphs", type=int, default=0, help="random graphs beside the tasks")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--translator", metavar="FILE.py:FUNCTION")
    parser.add_argument("--threads", default=[1], type=lambda s: [int(p) for p in s.split(",")])
    parser.add_argument("--seconds", type=float, default=0.4, help="of timing per pair; 0: none")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        if args.translator and not args.score:
            raise InputError("--translator goes with --score")
        (score if args.score else make)(args)
    except ParedownError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
