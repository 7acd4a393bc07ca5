"""Operator tasks over backends: made, right, its own work, and only then how fast.

    python benchmarks/kernels.py [--backends native,openvino] [--backend mine=file.py:make]
        [--only convolution,softmax] [--threads 1] [--seconds 0.4] --json FILE

After MultiKernelBench (arXiv:2507.17773). Every backend judges in a process of its own: one that
crashes loses its tasks from there on, and the table says so. Ratios are eager's time over the
backend's, paired in one interleaved run; a task that is wrong or left to torch has none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from paredown.errors import ParedownError
from paredown.measure.child import Jobs, Limits, tell
from paredown.measure.fingerprint import fingerprint
from paredown.testing.bench import BACKENDS, judge, summary, tasks
from paredown.testing.bench.backends import from_file
from paredown.testing.bench.judge import Verdict


def run(backend: str, only: list[str], threads: int, seconds: float) -> list[dict[str, Any]]:
    """In a child: every task on one backend, told as it comes."""
    torch.set_num_threads(threads)
    chosen = from_file(backend) if "=" in backend else BACKENDS[backend]
    rows: list[dict[str, Any]] = []
    for task in tasks(only):
        tell(("begins", task.name, task.category))
        found = judge(task, chosen, seconds=seconds, threads=threads).to_json()
        rows.append(found)
        tell(("ended", found, None))
    return rows


def verdicts(backend: str, args: argparse.Namespace) -> list[Verdict]:
    """Every verdict on one backend; what a crash cost is in its own."""
    found: list[dict[str, Any]] = []
    at = ["", ""]

    def message(m: tuple[str, Any, Any]) -> None:
        if m[0] == "begins":
            at[:] = [m[1], m[2]]
        else:
            found.append(m[1])
            row = m[1]
            told = "" if row["ratio"] is None else f"{row['ratio']:.2f}x eager"
            print(
                f"{row['backend']:12} {row['task']:24} {row['outcome']:10} {told} {row['reason']}"
            )

    only = [t.name for t in tasks(args.only)]
    while only:
        limits = Limits.default(60 + 20 * len(only))
        try:
            Jobs().run(run, backend, only, args.threads, args.seconds, limits=limits,
                       on_message=message)  # fmt: skip
            only = []
        except ParedownError as e:
            name = backend.partition("=")[0]
            found.append(Verdict(at[0], at[1], name, "raised", str(e)).to_json())
            only = only[only.index(at[0]) + 1 :] if at[0] in only else []
    return [Verdict(**row) for row in found]


def main() -> None:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backends", default="native,onnxruntime,openvino")
    parser.add_argument("--backend", action="append", default=[], metavar="NAME=FILE.py:FUNCTION")
    parser.add_argument("--only", default="", type=lambda s: [p for p in s.split(",") if p])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="of timing per task; 0: none")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.only = args.only or []
    every: list[Verdict] = []
    for backend in [*args.backends.split(","), *args.backend]:
        every += verdicts(backend, args)
    rows = summary(every)
    for r in rows:
        fast = "" if r["ratio"] is None else f", {r['ratio']:.2f}x eager"
        print(
            f"{r['backend']:12} {r['category']:14} {r['tasks']:3} tasks, made {r['compile']:.0%}, "
            f"right {r['pass']:.0%}{fast}"
        )
    if args.json:
        document = {
            "schema": 1,
            "machine": fingerprint().model_dump(mode="json"),
            "threads": args.threads,
            "seconds": args.seconds,
            "rows": [v.to_json() for v in every],
            "categories": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
