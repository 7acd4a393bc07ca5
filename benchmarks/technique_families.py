"""One row of the techniques' benchmark: `pare down` with its families and without, side by side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from technique_results import by_interval

from paredown import artefact, quality, runtime
from paredown.errors import MeasurementError
from paredown.measure.child import Jobs, Limits
from paredown.measure.compare import interleave
from paredown.paring import down
from paredown.targets import resolve

TARGETS = Path(__file__).with_name("technique_nets.py")
SECONDS = 6.0


@dataclass(frozen=True)
class Job:
    """One row's interleaved run: artefacts by name."""

    target: str
    folders: dict[str, Path]
    threads: int
    real_time: bool


def measure(job: Job) -> dict[str, Any]:
    """Both results loaded back from disk: drop, size, latency in turns with the original."""
    torch.set_num_threads(job.threads)
    original = resolve(job.target)
    loaded = {
        n: artefact.load(f, threads=job.threads, source=original) for n, f in job.folders.items()
    }
    before = quality.judge(original.verify, original.model)
    found: dict[str, Any] = {}
    for name, one in loaded.items():
        drop = quality.drop(before, quality.judge(original.verify, one.module))
        found[name] = {
            "backend": one.executable.backend,
            "drop": drop.value,
            "drop_interval": drop.spread,
            "examples": drop.n,
            "size_bytes": artefact.size_bytes(one.folder),
        }
    own = runtime.backend(runtime.own_backend(original)).lower(original, threads=job.threads)
    subjects = {n: one.executable for n, one in loaded.items()} | {"original": own}
    args = original.inputs
    with torch.inference_mode(), undisturbed(job.real_time):
        c = interleave([(n, lambda e=e: e(*args)) for n, e in subjects.items()], seconds=SECONDS)
    for t in c.timings:
        found.setdefault(t.name, {}).update(
            latency_s=t.latency.value,
            latency_spread_s=t.latency.spread,
            over_without=t.ratio.value,
            over_without_interval=t.ratio.spread,
        )
    return {**found, "a_a": c.a_a.value}


@contextmanager
def undisturbed(wanted: bool) -> Iterator[None]:
    """Every thread of this process at real-time priority, as the machine may be busy."""
    if not wanted:
        yield
        return
    threads = [int(t) for t in os.listdir("/proc/self/task")]
    for t in threads:
        os.sched_setscheduler(t, os.SCHED_RR, os.sched_param(5))
    try:
        yield
    finally:
        for t in threads:
            os.sched_setscheduler(t, os.SCHED_OTHER, os.sched_param(0))


def arm(target: str, plan: dict[str, Any], budget: str, only: list[str], out: Path) -> dict:
    """One `pare down` with the techniques named."""
    from paredown.report.progress import on_stderr

    result = down(
        target,
        to=plan["budgets"][budget]["to"],
        only=only,
        effort=plan["effort"],
        seed=plan["seed"],
        threads=plan["threads"],
        out=out,
        progress=on_stderr(),
    )
    states = [t.state for t in result.doc.trials]
    return {
        "verdict": result.verdict,
        "steps": result.doc.recipe["steps"],
        "lower": result.doc.recipe["lower"],
        "trials": {s: states.count(s) for s in sorted(set(states))},
        "met": {c.text: c.met for c in result.doc.constraints},
        "left_out": {k: v for k, v in result.doc.left_out.items() if k in only},
    }


def row(name: str, plan: dict[str, Any], real_time: bool) -> dict[str, Any]:
    """One network under one budget, with the families and without, then side by side."""
    network, budget = name.split("/")
    target = f"{TARGETS}:{network}"
    extra = plan["budgets"][budget]["families"]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {n: Path(scratch) / n for n in ("without", "with")}
        found: dict[str, Any] = {"families": extra}
        for n, folder in folders.items():
            only = plan["base"] + (extra if n == "with" else [])
            found[n] = arm(target, plan, budget, only, folder)
        idle = [n for n in folders if not found[n]["trials"].get("done")]
        if idle:
            raise MeasurementError(f"{' and '.join(idle)}: no candidate was measured in the effort")
        job = Job(target, folders, plan["threads"], real_time)
        timed = Jobs().run(measure, job, limits=Limits.default(600))
    for n, figures in timed.items():
        found[n] = {**found.get(n, {}), **figures} if isinstance(figures, dict) else figures
    used = {s["technique"] for s in found["with"]["steps"]}
    found["families_used"] = [f for f in extra if f in used]
    return {**found, **credited(judged(found, budget, plan["allowed_drop"]), found)}


def credited(verdict: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A win whose recipe holds none of the families is the search's luck, and counts as no gain."""
    lucky = verdict["verdict"] == "win" and not row["families_used"]
    return {**verdict, "verdict": "luck"} if lucky else verdict


def judged(row: dict[str, Any], budget: str, allowed: float) -> dict[str, Any]:
    """``gain``, the cost without over the cost with, its interval, and the verdict.

    Where only one result keeps the drop it wins, and the row has no gain.
    """
    keeps = {n: row[n]["drop"] <= allowed + 1e-9 for n in ("with", "without")}
    if not all(keeps.values()):
        verdict = {(True, False): "win", (False, True): "loss"}.get(
            tuple(keeps.values()), "neither"
        )
        return {"verdict": verdict, "gain": None, "gain_interval": None, "keeps": keeps}
    if budget == "latency":
        low, high = row["with"]["over_without_interval"]
        gain, interval = 1 / row["with"]["over_without"], [1 / high, 1 / low]
    else:
        gain = row["without"]["size_bytes"] / row["with"]["size_bytes"]
        interval = [gain, gain]
    return {
        "verdict": by_interval(*interval, 1.0),
        "gain": gain,
        "gain_interval": interval,
        "keeps": keeps,
    }
