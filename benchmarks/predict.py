"""Predicted against measured latency: networks of ten families that no curve was trained on.

    python benchmarks/predict.py --json benchmarks/results/predict.json [--backends eager,native]
        [--networks resnet18,zoo:densenet121,LM=hf:FOLDER] [--only] [--batch 1,8] [--minutes 20]
        [--again] [--untimed]

Predictions come from shapes alone, through the same `price` as `pare profile` and the search, with
what `pare calibrate --deep` learned on operators that paredown generates itself. No network takes
part in that, so every family is held out. Each network is timed alone in a process of its own
(untrained fp32 weights, all cores); the file is written after each, and a run that is stopped is
gone on with by the next. ``--networks`` adds targets (``[FAMILY=]zoo:...`` or ``hf:...``) to the
built-in list; with ``--only`` they are the list. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import predict_nets

RESULTS = Path(__file__).parent / "results" / "predict.json"
SECONDS = 0.4
ASKED = {"median_error": 0.08, "within_10": 0.85, "spearman": 0.98}
Row = dict[str, Any]


def timed(network: str, backend: str, batch: int, threads: int) -> dict[str, Any]:
    """Median seconds of one network, with the (0.2, 0.8) quantiles; run in a child."""
    import torch

    from paredown import runtime
    from paredown.measure.alone import alone

    torch.set_num_threads(threads)
    workload = predict_nets.named(network)[2](batch)
    run = runtime.backend(backend).lower(workload, threads=threads)
    with torch.inference_mode():
        times = alone(lambda: run(*workload.inputs, **workload.kwargs), SECONDS)
    fifths = statistics.quantiles(times, n=5)
    return {
        "measured_s": statistics.median(times),
        "spread_s": [fifths[0], fifths[3]],
        "runs": len(times),
    }


def predicted(rows: list[Row], device: Any) -> None:
    """Fill in what the cost model says now; each network is captured once for all backends."""
    from paredown.cost.price import price
    from paredown.graph.capture import capture

    wanted: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        wanted.setdefault((row["network"], row["batch"]), []).append(row)
    for (network, batch), same in wanted.items():
        graph = capture(predict_nets.named(network)[2](batch))
        for row in same:
            priced = price(graph, device, backend=row["backend"])
            row["predicted_s"] = priced.seconds
            row["stated_error"] = priced.error
            if "measured_s" in row:
                row["error"] = priced.seconds / row["measured_s"] - 1


def summary(rows: list[Row]) -> dict[str, Any]:
    """By backend: the asked figures, and the median error of every family, the worst first."""
    from scipy.stats import spearmanr

    found: dict[str, Any] = {}
    for backend in dict.fromkeys(r["backend"] for r in rows):
        own = [r for r in rows if r["backend"] == backend and "error" in r]
        if len(own) < 3:
            continue
        off = [abs(r["error"]) for r in own]
        families: dict[str, list[float]] = {}
        for r in own:
            families.setdefault(r["family"], []).append(r["error"])
        by_family = {
            f: {
                "median_error": statistics.median(map(abs, e)),
                "median_signed": statistics.median(e),
                "rows": len(e),
            }
            for f, e in families.items()
        }
        ranked = spearmanr([r["predicted_s"] for r in own], [r["measured_s"] for r in own])
        found[backend] = {
            "rows": len(own),
            "median_error": statistics.median(off),
            "within_10": sum(e <= 0.10 for e in off) / len(off),
            "spearman": float(ranked.statistic),
            "largest_error": max(off),
            "families": dict(sorted(by_family.items(), key=lambda p: -p[1]["median_error"])),
        }
    return found


def told(found: dict[str, Any]) -> str:
    """The summary in lines."""
    lines: list[str] = []
    for backend, s in found.items():
        lines.append(
            f"{backend}: median error {s['median_error']:.1%} (asked 8 %), within 10 % "
            f"{s['within_10']:.0%} (85 %), Spearman {s['spearman']:.3f} (0.98), {s['rows']} rows"
        )
        lines += [
            f"  {f:26} {v['median_error']:6.1%}  signed {v['median_signed']:+.1%}"
            for f, v in s["families"].items()
        ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What is asked on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="", help="targets to add, comma-separated")
    parser.add_argument("--only", action="store_true", help="nothing but --networks")
    parser.add_argument("--backends", default="eager,native,openvino")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--minutes", type=float, default=60.0, help="time nothing after so many")
    parser.add_argument("--again", action="store_true", help="time what the file already has")
    parser.add_argument("--untimed", action="store_true", help="predict anew, time nothing")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Time what is not in the file, predict all of it anew; 1 where a figure is not reached."""
    asked = arguments()
    from paredown import device
    from paredown.errors import ParedownError
    from paredown.measure.child import Jobs, Limits
    from paredown.measure.fingerprint import cores, fingerprint

    added = [n for n in asked.networks.split(",") if n]
    names = added if asked.only else [*predict_nets.NETWORKS, *added]
    rows: list[Row] = []
    if asked.json.exists() and not asked.again:
        rows = json.loads(asked.json.read_text())["rows"]
    known = {(r["network"], r["backend"], r["batch"]) for r in rows}
    machine = fingerprint()
    here = device.load("this")
    if here.learned is None:
        print("not calibrated deeply: predictions are nominal (pare calibrate --deep)")

    def write() -> None:
        body = {
            "schema": 1,
            "command": " ".join(["python", *sys.argv]),
            "machine": machine.model_dump(mode="json"),
            "trained_on": "operators generated by paredown.measure.generate; no network",
            "asked": ASKED,
            "summary": summary(rows),
            "rows": rows,
        }
        asked.json.write_text(json.dumps(body, indent=1) + "\n")

    jobs, end = Jobs(), time.monotonic() + 60 * asked.minutes
    for batch in map(int, asked.batch.split(",")):
        for backend in asked.backends.split(","):
            for text in names:
                name, family, _ = predict_nets.named(text)
                if (name, backend, batch) in known or asked.untimed or time.monotonic() > end:
                    continue
                row: Row = {"network": name, "family": family, "backend": backend, "batch": batch}
                try:
                    row |= jobs.run(
                        timed, text, backend, batch, len(cores()), limits=Limits.default(300)
                    )
                except ParedownError as e:
                    row["failed"] = str(e)
                rows.append(row)
                shown = row.get("failed") or f"{row['measured_s'] * 1e3:.2f} ms"
                print(f"{name} {backend} batch {batch}: {shown}", flush=True)
                write()
    predicted(rows, here)
    write()
    found = summary(rows)
    print(told(found))
    return int(any(not reached(s) for s in found.values()) or not found)


def reached(s: dict[str, Any]) -> bool:
    """Whether a backend reaches all that is asked."""
    good = s["median_error"] <= ASKED["median_error"] and s["within_10"] >= ASKED["within_10"]
    return bool(good and s["spearman"] >= ASKED["spearman"] and not math.isnan(s["spearman"]))


if __name__ == "__main__":
    sys.exit(main())
