"""`pare calibrate --deep`: every backend timed on generated operators, and its curves fitted.

Each chain's time is kept in a file beside the calibration as soon as it is known, so that a run
which is stopped loses nothing and the next one goes on; the same machine and versions never time a
chain twice.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from paredown.cost.describe import describe
from paredown.cost.execution import plan
from paredown.cost.price import parts_of, views
from paredown.device.device import Device
from paredown.errors import ParedownError
from paredown.graph.capture import capture
from paredown.measure.alone import alone
from paredown.measure.child import one_line, tell
from paredown.measure.fingerprint import versions
from paredown.measure.generate import SPACE, Sample, samples
from paredown.runtime import backend as backend_named

BACKENDS = ("eager", "native", "openvino", "onnxruntime")
SECONDS = 0.03
"""Of timing for each chain (at least five runs)."""
TOGETHER = 24
"""Chains that are compiled before they are timed."""
Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """What was timed so far with these versions; a line that a crash cut off is left out."""
    if not path.exists():
        return []
    found: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):
            found.append(json.loads(line))
    now = versions()
    return [r for r in found if r["space"] == SPACE and r.get("versions") == now]


def time_samples(
    backend: str,
    device: Device,
    path: Path,
    said: Callable[[int, int], None] = lambda done, total: None,
    *,
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
    until: float | None = None,
) -> None:
    """Time what is not yet in the file at ``path`` and append it there, line by line.

    Run in a process of its own. Chains are compiled a few at a time and then timed together inside
    ``quiet()``. ``until`` is a time of `time.monotonic` after which nothing is begun. A chain that
    a backend refuses is kept with the reason.
    """
    known = {r["sample"] for r in rows(path) if r["backend"] == backend}
    wanted = list(samples(fused=backend != "eager"))
    left = [s for s in wanted if s.name not in known]
    for at in range(0, len(left), TOGETHER):
        if until is not None and time.monotonic() > until:
            return
        compiled: list[tuple[Row, Callable[[], object]]] = []
        for i, sample in enumerate(left[at : at + TOGETHER]):
            said(len(wanted) - len(left) + at + i, len(wanted))
            row: Row = {"space": SPACE, "versions": versions(), "backend": backend}
            row |= {"sample": sample.name, "kind": sample.kind}
            try:
                run = _compiled(sample, backend, device, row)
            except (ParedownError, RuntimeError) as e:  # a runtime's refusal is a RuntimeError
                _append(path, row | {"failed": one_line(e)})
            else:
                compiled.append((row, run))
        with quiet(), torch.inference_mode():
            for row, run in compiled:
                _append(path, row | {"seconds": statistics.median(alone(run, SECONDS))})


def job(backend: str, device: Device, path: Path, seconds: float) -> None:
    """`time_samples` inside a child process, which tells ``(done, all)`` as it goes."""
    torch.set_num_threads(device.threads)
    until = time.monotonic() + seconds
    time_samples(backend, device, path, lambda done, total: tell((done, total)), until=until)


def _append(path: Path, row: Row) -> None:
    with path.open("a+b") as out:
        if out.tell() > 0:
            out.seek(-1, os.SEEK_END)
            cut_off = out.read(1) != b"\n"
            out.write(b"\n" * cut_off)
        out.write(json.dumps(row).encode() + b"\n")


def _compiled(sample: Sample, backend: str, device: Device, row: Row) -> Callable[[], object]:
    """A chain ready to run once; what it consists of is written into ``row``."""
    workload = sample.make()
    graph = capture(workload)
    row["views"], row["parts"] = views(graph), []
    for run in plan(graph, backend):
        one = None if run.folded or not run.called else describe(run, graph)
        if one is not None:
            values = [round(v, 4) for v in one.values]
            took = [float(f"{s:.6g}") for s in parts_of(run, graph, device, backend)]
            row["parts"].append([run.kind, one.group, values, took])
    executable = backend_named(backend).lower(workload, threads=device.threads)
    return lambda: executable(*workload.inputs)
