"""Quantized layers in eager and inductor against the same layer in fp32 and bf16, taking turns.

Run it:  python benchmarks/torch_int8.py [--layers linear,conv,decode] [--backend eager]
                                    [--threads 1] [--seconds 6] [--json FILE]

Layers: ``linear`` 384 -> 1536 at 197 rows, ``conv`` 128 -> 128 3x3 at 28x28, ``decode``
2048 -> 2048 at one row, ``prefill`` the same at 197 rows. Each recipe is lowered, must pass the
lowering gate and say by ``executed()`` what ran; then all run interleaved in one child process.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown import runtime
from paredown.measure.child import Jobs, Limits
from paredown.measure.compare import interleave
from paredown.measure.fingerprint import fingerprint
from paredown.recipe import parse_inline
from paredown.recipe import run as apply
from paredown.runtime.gate import gate
from paredown.workload import Workload

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(384, 1536), (1, 197, 384)),
    "conv": (lambda: nn.Conv2d(128, 128, 3, padding=1), (1, 128, 28, 28)),
    "decode": (lambda: nn.Linear(2048, 2048, bias=False), (1, 1, 2048)),
    "prefill": (lambda: nn.Linear(2048, 2048, bias=False), (1, 197, 2048)),
}
RECIPES = {
    "fp32": "",
    "bf16": "bf16",
    "static-int8": "static-int8",
    "dynamic-int8": "dynamic-int8",
    "weight-only int8": "weight-only",
    "weight-only int8, bf16": "bf16 + weight-only",
    "weight-only int4": "weight-only:bits=4,group_size=64",
    "weight-only int4, bf16": "bf16 + weight-only:bits=4,group_size=64",
}
LINEAR_ONLY = ("dynamic", "weight-only")


@dataclass(frozen=True)
class Job:
    """One layer through every recipe."""

    layer: str
    backend: str
    threads: int
    seconds: float


def workload_of(name: str) -> Workload:
    """The layer as a network, on seeded inputs."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return Workload(nn.Sequential(make()).eval(), (torch.randn(shape),), name=name)


def measure(job: Job) -> list[dict[str, Any]]:
    """A row per recipe; times only where the gate is green."""
    torch.set_num_threads(job.threads)
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Any] = {}
    for name, steps in RECIPES.items():
        if job.layer == "conv" and name.startswith(LINEAR_ONLY):
            continue
        plain = workload_of(job.layer)
        workload = apply(parse_inline(steps), plain).workload if steps else plain
        executable = runtime.backend(job.backend).lower(workload, threads=job.threads)
        seen = gate(executable, workload, calls=1)
        ran = next(r for r in executable.executed() if r.role == "compute")
        rows[name] = {
            "layer": job.layer,
            "recipe": name,
            "backend": job.backend,
            "threads": job.threads,
            "operator": ran.op,
            "fallback": ran.fallback,
            "error": seen.error,
            "gate": seen.passed,
            "weight_bytes": executable.weight_bytes(),
        }
        if seen.passed:
            runs[name] = _run(executable, workload)
    timed = interleave(list(runs.items()), seconds=job.seconds)
    for t in timed.timings:
        rows[t.name] |= {
            "median_s": t.latency.value,
            "over_fp32": t.ratio.value,
            "over_fp32_interval": t.ratio.spread,
            "a_a": timed.a_a.value,
        }
    return list(rows.values())


def _run(executable: Any, workload: Workload) -> Any:
    return lambda: executable(*workload.inputs)


def show(rows: list[dict[str, Any]]) -> str:
    """A table for people."""
    head = f"{rows[0]['layer']} in {rows[0]['backend']}, {rows[0]['threads']} thread(s)"
    lines = [f"{head}, A/A {rows[0]['a_a']:.2f}"]
    for r in rows:
        took = f"{1e6 * r['median_s']:9.0f} us {r['over_fp32']:6.2f}x" if r["gate"] else "red gate"
        lines.append(
            f"  {r['recipe']:23} {took} {r['weight_bytes'] / 1e3:9.1f} kB  {r['operator']}"
            + (f"  [{r['fallback']}]" if r["fallback"] else "")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--backend", default="eager", choices=["eager", "inductor"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each layer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for layer in options.layers.split(","):
        job = Job(layer, options.backend, options.threads, options.seconds)
        rows += (found := Jobs().run(measure, job, limits=Limits.default(600.0)))
        print(show(found), flush=True)
    if options.json:
        body = {
            "schema": 1,
            "command": " ".join(["python", *sys.argv]),
            "machine": fingerprint().model_dump(),
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
