"""Learn the fuzzer's operators from its records: src/paredown/testing/fuzz/operators.json.gz.

    python scripts/fuzz_operators.py [--only torch.nn.functional.conv2d] [--among PATTERN]

Some minutes; afterwards the figures that `docs/fuzzing.md` quotes are printed.
"""

import argparse
import gzip
import json
import re
import sys
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from paredown.testing.fuzz.call import Call
from paredown.testing.fuzz.learn import learn
from paredown.testing.fuzz.partial import OPERATORS, PartialOperator, records

SKIPPED = (
    "torch._", "torch.ops.", "torch.random", "torch.quantize", "torch.Tensor.to_sparse",
    "torch.linalg.", "torch.special.", "torch.fft.", "torch.Tensor.new_", "torch.Tensor.is_",
    "torch.rand", "torch.empty", "torch.Tensor.__r", "torch.nn.functional.fractional",
)  # fmt: skip
"""Functions that are no part of a network, by the beginning of their names."""
PROCESSES = 2
SAVED_EVERY = 4.0
"""Seconds; a run that was stopped goes on after what the file holds."""


def timed(calls: list[Call]) -> tuple[list[PartialOperator], float]:
    """The operators of one function, and the seconds it took."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.monotonic()
    return learn(calls), time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="learn one function, print it, write nothing")
    parser.add_argument("--among", default="", help="learn only functions that match this pattern")
    parser.add_argument("--again", action="store_true", help="forget what the file holds")
    given = parser.parse_args()
    by_function: dict[str, list[Call]] = defaultdict(list)
    for call in records():
        if not call.op.startswith(SKIPPED) and given.only in (None, call.op):
            by_function[call.op].append(call)
    if given.only:
        for p in timed(by_function[given.only])[0]:
            print(json.dumps(p.calls[0].to_json()), p.rules)
        return
    known: dict[str, list[PartialOperator]] = {}
    if OPERATORS.exists() and not given.again:
        document = json.loads(gzip.decompress(OPERATORS.read_bytes()))
        known = {op: [] for op in document["functions"]}
        for row in document["operators"]:
            p = PartialOperator.of_json(row)
            known[p.op].append(p)
    began = saved = time.monotonic()
    # Those recorded most often first: a run that is stopped has the useful ones.
    new = [op for op in by_function if op not in known and re.search(given.among, op)]
    todo = sorted(new, key=lambda op: -len(by_function[op]))
    with ProcessPoolExecutor(PROCESSES) as pool:
        found = pool.map(timed, [by_function[op] for op in todo])
        for n, (op, (learned, took)) in enumerate(zip(todo, found, strict=True)):
            known[op] = learned
            print(f"{n}/{len(todo)} {op}: {len(learned)}, {took:.1f} s", file=sys.stderr)
            if time.monotonic() - saved > SAVED_EVERY:
                saved = time.monotonic()
                write(known)
    write(known)
    print(json.dumps(summary(known), indent=1), f"{time.monotonic() - began:.0f} s")


def write(known: dict[str, list[PartialOperator]]) -> None:
    rows = [p.to_json() for op in sorted(known) for p in known[op]]
    text = json.dumps(
        {"schema": 1, "torch": torch.__version__, "functions": sorted(known), "operators": rows}
    )
    write_bytes(OPERATORS, gzip.compress(text.encode(), mtime=0))


def write_bytes(path: Path, data: bytes) -> None:
    """The old file or the new one, never half of one."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def summary(known: dict[str, list[PartialOperator]]) -> dict[str, int]:
    learned = [p for found in known.values() for p in found]
    ruled = [p for p in learned if p.rules is not None]
    return {
        "functions tried": len(known),
        "functions": len({p.op for p in learned}),
        "functions with rules": len({p.op for p in ruled}),
        "partial operators": len(learned),
        "with rules": len(ruled),
        "labelled calls": sum(p.learned_from for p in learned),
        "invalid calls": sum(p.rules.refused for p in ruled if p.rules),
        "invalid calls that the rules let pass": sum(p.rules.missed for p in ruled if p.rules),
    }


if __name__ == "__main__":
    main()
