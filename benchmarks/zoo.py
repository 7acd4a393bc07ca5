"""What each paper's MACs promise and what this CPU delivers: every network of the zoo in one table.

    python benchmarks/zoo.py [--only resnet50,vit-s] [--backend openvino] [--seconds 6]
        [--json benchmarks/results/zoo.json]

Latency (batch 1, the paper's input, untrained fp32 weights), peak memory, parameters, MACs and the
latency predicted for this machine. The backend's outputs are compared with eager before its time
counts. One network after the other, each in a process of its own; the file is written after each,
and a later run goes on where one stopped. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from paredown import zoo
from paredown.errors import ParedownError

RESULTS = Path(__file__).parent / "results" / "zoo.json"


def load(name: str, backend: str, threads: int) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """An executable of one network and its inputs; run in a child."""
    from paredown.sidebyside import Subject, ready

    executable, workload = ready(Subject(name, target=f"zoo:{name}", backend=backend), threads)
    return executable, workload.inputs, workload.kwargs


def gated(name: str, backend: str, threads: int) -> bool:
    """Whether the backend computes what eager does (raises ``GateError`` where not)."""
    from paredown import runtime, targets
    from paredown.runtime.gate import gate

    workload = targets.resolve(f"zoo:{name}")
    gate(runtime.backend(backend).lower(workload, threads=threads), workload).demand()
    return True


def predicted(name: str, backend: str) -> dict[str, Any]:
    """The latency that our cost model gives this machine, from shapes alone."""
    import torch

    from paredown import device
    from paredown.cost.price import price
    from paredown.graph.capture import capture
    from paredown.workload import Workload

    with torch.device("meta"):
        model = zoo.create(name).eval()
    graph = capture(Workload(model, zoo.example(name), name=name))
    return price(graph, device.load("this"), backend=backend).latency.model_dump(mode="json")


def measured(name: str, backend: str, threads: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    from paredown.measure import memory
    from paredown.measure.child import Jobs
    from paredown.sidebyside import Subject, compare

    row = zoo.row(name).model_dump(mode="json")
    if backend != "eager":
        Jobs().run(gated, name, backend, threads)
    subject = Subject(name, target=f"zoo:{name}", backend=backend)
    found = compare([subject], threads=threads, seconds=seconds)
    peak = memory.measure(load, name, backend, threads, backend=backend)
    latency = found[name].latency
    return {
        **row,
        "latency": latency.model_dump(mode="json"),
        "a_a_ratio": found.a_a.model_dump(mode="json"),
        "macs_per_s": row["macs"] / latency.known(),
        "peak_memory": peak.model_dump(mode="json"),
        "predicted": predicted(name, backend),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the fewest MACs first."""
    lines = [
        "| network | MACs | params | latency | predicted / measured | GMAC/s | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in sorted(rows, key=lambda r: r["macs"]):
        if "failed" in r:
            lines.append(f"| {r['name']} | {r['macs'] / 1e9:.3f} G | | {r['failed']} | | | |")
            continue
        taken, guess, peak = (r[k]["value"] for k in ("latency", "predicted", "peak_memory"))
        ratio = f"{guess / taken:.2f}" if guess is not None else "n/a"
        held = f"{peak / 2**20:.0f} MiB" if peak is not None else "n/a"
        lines.append(
            f"| {r['name']} | {r['macs'] / 1e9:.3f} G | {r['params'] / 1e6:.2f} M "
            f"| {taken * 1e3:.2f} ms | {ratio} | {r['macs_per_s'] / 1e9:.1f} | {held} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure what is not in the file yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="networks, comma-separated (all)")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing per network")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    from paredown.measure.fingerprint import fingerprint

    names = asked.only.split(",") if asked.only else zoo.names()
    for name in names:
        zoo.variant(name)
    setup = {"backend": asked.backend, "threads": asked.threads}
    doc: dict[str, Any] = {**setup, "rows": []}
    if asked.json.exists():
        doc = json.loads(asked.json.read_text())
        if any(doc[k] != v for k, v in setup.items()):
            print(f"{asked.json} is of another backend or thread count", file=sys.stderr)
            return 2
    doc["fingerprint"] = fingerprint().model_dump(mode="json")
    done = {r["name"] for r in doc["rows"] if "failed" not in r}
    for name in names:
        if name in done:
            continue
        try:
            row = measured(name, asked.backend, asked.threads, asked.seconds)
        except ParedownError as e:
            row = {"name": name, "macs": zoo.row(name).macs, "failed": str(e)}
        doc["rows"] = [r for r in doc["rows"] if r["name"] != name] + [row]
        part = asked.json.with_suffix(".part")
        part.write_text(json.dumps(doc, indent=1) + "\n")
        part.replace(asked.json)
        print(name, row.get("failed") or f"{row['latency']['value'] * 1e3:.2f} ms", flush=True)
    print(table([r for r in doc["rows"] if r["name"] in names]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
