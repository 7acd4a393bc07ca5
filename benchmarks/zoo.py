"""What each paper's MACs promise and what this CPU delivers: every network of the zoo in one table.

    python benchmarks/zoo.py [--only resnet50,vit-s] [--skip dico-h,maxim-m3] [--most 150]
        [--backend openvino] [--seconds 2] [--minutes 30] [--json benchmarks/results/zoo.json]
        [--predict-only] [--once]

Latency (batch 1, the paper's input, untrained fp32 weights), peak memory, parameters, MACs and the
latency predicted for this machine. The backend's outputs are compared with eager before its time
counts. One network after the other, each in a process of its own: first the smallest of every
paper, then the others. The file is written after each, so a run that is stopped (or out of
``--minutes``) is gone on with by the next. Networks that are left out are rows with their reason.
Run it on a quiet machine; on a busy one ``--untimed`` writes what does not depend on the load, and
a later run adds the latencies. ``--predict-only`` prices the rows that are there with this
machine's calibration as it is now (run `pare calibrate --deep` first: without it a price knows one
share of the peak for each kind of operator) and leaves what was measured alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from paredown import device, zoo
from paredown.device import Device
from paredown.errors import ParedownError
from paredown.files import write_text
from paredown.result import ZooRow

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

    from paredown.cost.price import price
    from paredown.graph.capture import capture
    from paredown.workload import Workload

    with torch.device("meta"):
        model = zoo.create(name).eval()
    graph = capture(Workload(model, zoo.example(name), name=name))
    return price(graph, machine(), backend=backend).latency.model_dump(mode="json")


@lru_cache(maxsize=1)
def machine() -> Device:
    """This machine as it is calibrated, read once."""
    return device.load("this")


def priced_with(backend: str) -> str:
    """What prices come from: ``learned`` or ``shares``, and a digest of the calibration."""
    learned = machine().learned
    kind = "learned" if learned is not None and backend in learned.backends() else "shares"
    told = machine().model_dump_json() + (learned.model_dump_json() if learned else "")
    return f"{kind} {hashlib.sha256(told.encode()).hexdigest()[:12]}"


def priced_anew(doc: dict[str, Any], path: Path, minutes: float | None) -> None:
    """Predict every row again that another calibration predicted, the smallest network first."""
    start, source = time.monotonic(), priced_with(doc["backend"])
    for row in sorted(doc["rows"], key=lambda r: r["macs"]):
        if "predicted" not in row or row.get("priced_with") == source:
            continue
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            print(f"{minutes:g} minutes are over; run again to go on", file=sys.stderr)
            return
        row["predicted"] = predicted(row["name"], doc["backend"])
        row["priced_with"] = source
        write_text(path, json.dumps(doc, indent=1) + "\n")
        print(row["name"], f"{1e3 * (row['predicted']['value'] or 0):.2f} ms", flush=True)


def timed(name: str, backend: str, threads: int, seconds: float) -> tuple[Any, int | None]:
    """The comparison of one network with itself, and its bytes where torch tells; in a child.

    Without ``seconds`` only the bytes.
    """
    from paredown.measure import memory
    from paredown.measure.compare import Timed, interleave
    from paredown.sidebyside import Subject, ready

    executable, workload = ready(Subject(name, target=f"zoo:{name}", backend=backend), threads)
    found = None
    if seconds:
        found = interleave([(name, Timed(executable, workload))], seconds=seconds)
    if backend not in memory.TORCH:
        return found, None
    return found, memory.torch_total(executable, workload.inputs, workload.kwargs)


class Clocked:
    """An executable whose runs are timed; for networks that take minutes."""

    def __init__(self, executable: Any) -> None:
        self.executable, self.seconds = executable, list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executable, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One run."""
        start = time.perf_counter()
        out = self.executable(*args, **kwargs)
        self.seconds.append(time.perf_counter() - start)
        return out


def timed_once(name: str, backend: str, threads: int) -> tuple[list[float], int]:
    """Seconds of the runs that measuring the bytes takes anyway, all but the observed one."""
    from paredown.measure import memory
    from paredown.sidebyside import Subject, ready

    executable, workload = ready(Subject(name, target=f"zoo:{name}", backend=backend), threads)
    clocked: Any = Clocked(executable)
    held = memory.torch_total(clocked, workload.inputs, workload.kwargs)
    return clocked.seconds[:-1], held


def measured(row: ZooRow, asked: argparse.Namespace, jobs: Any) -> dict[str, Any]:
    """One row of the table."""
    from paredown import figure
    from paredown.measure import memory
    from paredown.measure.child import Limits

    name, backend, threads = row.name, asked.backend, asked.threads
    if backend != "eager":
        jobs.run(gated, name, backend, threads)
    seconds = 0.0 if asked.untimed else asked.seconds
    limits, found = Limits.default(asked.limit), None
    taken = list[float]()
    if asked.once:
        taken, held = jobs.run(timed_once, name, backend, threads, limits=limits)
    else:
        found, held = jobs.run(timed, name, backend, threads, seconds, limits=limits)
    if held is None:
        peak = memory.measure(load, name, backend, threads, backend=backend)
    else:
        peak = figure.measured(held, "B", n=1)
    told = {
        **row.model_dump(mode="json"),
        "peak_memory": peak.model_dump(mode="json"),
        "predicted": predicted(name, backend),
        "priced_with": priced_with(backend),
    }
    if found is None and not taken:
        return told
    latency = found[name].latency if found else runs_apart(taken)
    if found is not None:
        told["a_a_ratio"] = found.a_a.model_dump(mode="json")
    return told | {
        "latency": latency.model_dump(mode="json"),
        "macs_per_s": row.macs / latency.known(),
    }


def runs_apart(seconds: list[float]) -> Any:
    """A latency of single runs, none left out; from the fastest to the slowest."""
    import statistics

    from paredown import figure

    spread = (min(seconds), max(seconds))
    return figure.measured(statistics.median(seconds), "s", spread=spread, n=len(seconds))


def ordered(rows: list[ZooRow]) -> list[ZooRow]:
    """The smallest of every paper first, then the second smallest, and so on."""
    by_work = sorted(rows, key=lambda r: (r.macs, r.name))
    place: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for r in by_work:
        ranks[r.name] = place[r.paper] = place.get(r.paper, -1) + 1
    return sorted(by_work, key=lambda r: (ranks[r.name], r.macs))


def left_out(row: ZooRow, asked: argparse.Namespace) -> str | None:
    """Why a network is not measured, or None."""
    if row.name in (asked.skip.split(",") if asked.skip else ()):
        return asked.why
    if asked.most is not None and row.macs > asked.most * 1e9:
        return f"more than {asked.most:g} GMACs: its timing would take too long here"
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the fewest MACs first."""
    lines = [
        "| network | MACs | params | latency | predicted / measured | GMAC/s | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in sorted(rows, key=lambda r: r["macs"]):
        why = r.get("failed") or r.get("skipped")
        if why:
            lines.append(f"| {r['name']} | {r['macs'] / 1e9:.3f} G | | {why} | | | |")
            continue
        guess, peak = (r[k]["value"] for k in ("predicted", "peak_memory"))
        held = f"{peak / 2**20:.0f} MiB" if peak is not None else "n/a"
        start = f"| {r['name']} | {r['macs'] / 1e9:.3f} G | {r['params'] / 1e6:.2f} M "
        if "latency" not in r:
            said = f"{guess * 1e3:.2f} ms predicted" if guess is not None else "n/a"
            lines.append(f"{start}| not timed | {said} | | {held} |")
            continue
        taken = r["latency"]["value"]
        ratio = f"{guess / taken:.2f}" if guess is not None else "n/a"
        lines.append(
            f"{start}| {taken * 1e3:.2f} ms | {ratio} | {r['macs_per_s'] / 1e9:.1f} | {held} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="networks, comma-separated (all)")
    parser.add_argument("--skip", help="networks to leave out, comma-separated")
    parser.add_argument("--why", default="left out by --skip", help="the reason of --skip")
    parser.add_argument("--most", type=float, help="leave out networks of more GMACs")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing per network")
    parser.add_argument("--untimed", action="store_true", help="no latency: the machine is busy")
    parser.add_argument("--predict-only", action="store_true", help="price anew, measure nothing")
    parser.add_argument(
        "--once",
        action="store_true",
        help="time the few runs that measuring memory takes anyway, without A/A (eager and "
        "inductor; for networks of minutes)",
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one network")
    parser.add_argument("--minutes", type=float, help="begin no network after so many")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Measure what is not in the file yet, then print the table."""
    asked = arguments()
    from paredown.measure.child import Jobs
    from paredown.measure.fingerprint import fingerprint

    names = asked.only.split(",") if asked.only else zoo.names()
    for name in [*names, *(asked.skip.split(",") if asked.skip else ())]:
        zoo.variant(name)
    setup = {"backend": asked.backend, "threads": asked.threads}
    doc: dict[str, Any] = {**setup, "rows": []}
    if asked.json.exists():
        doc = json.loads(asked.json.read_text())
        if any(doc[k] != v for k, v in setup.items()):
            print(f"{asked.json} is of another backend or thread count", file=sys.stderr)
            return 2
    if asked.predict_only:
        priced_anew(doc, asked.json, asked.minutes)
        print(table([r for r in doc["rows"] if r["name"] in names]))
        return 0
    doc["fingerprint"] = fingerprint().model_dump(mode="json")
    needed = "predicted" if asked.untimed else "latency"
    done = {r["name"] for r in doc["rows"] if needed in r}
    start, jobs = time.monotonic(), Jobs()
    for row in ordered([r for r in zoo.rows() if r.name in names and r.name not in done]):
        if asked.minutes is not None and time.monotonic() - start > 60 * asked.minutes:
            print(f"{asked.minutes:g} minutes are over; run again to go on", file=sys.stderr)
            break
        why = left_out(row, asked)
        if why:
            found = {"name": row.name, "macs": row.macs, "skipped": why}
        else:
            try:
                found = measured(row, asked, jobs)
            except ParedownError as e:
                found = {"name": row.name, "macs": row.macs, "failed": str(e)}
        doc["rows"] = [r for r in doc["rows"] if r["name"] != row.name] + [found]
        write_text(asked.json, json.dumps(doc, indent=1) + "\n")
        said = found.get("failed") or found.get("skipped")
        if said is None and "latency" in found:
            said = f"{found['latency']['value'] * 1e3:.2f} ms"
        print(row.name, said or "not timed", flush=True)
    print(table([r for r in doc["rows"] if r["name"] in names]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
