"""`check`: measure a target against a budget. A regression gate for CI."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from paredown import quality
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.measure.child import Jobs
from paredown.measure.compare import interleave
from paredown.measure.fingerprint import fingerprint
from paredown.paring import request
from paredown.result import CheckDoc
from paredown.search.trial import Source
from paredown.sidebyside import Subject, ready
from paredown.workload import Workload, stored_bytes

SECONDS = 3.0


def check(target: str | nn.Module | Workload, inputs: Any = None, **options: Any) -> CheckDoc:
    """Measure, compare, say so. Relative constraints need an artefact: its source is the
    baseline.
    """
    asked = request.make(target, inputs, **options)
    figures, baseline, ratios = Jobs().run(_measure, asked.source, asked.target, asked.threads)
    results = asked.budget.judge(figures, baseline, ratios)
    return CheckDoc(
        target=asked.target,
        met=all(r.met and (r.proven or not asked.strict) for r in results),
        constraints=results,
        fingerprint=fingerprint(),
    )


def _measure(
    source: Source, target: str, threads: int
) -> tuple[dict[str, Figure], dict[str, Figure], dict[str, Figure]]:
    from paredown import artefact, targets

    torch.set_num_threads(threads)
    is_artefact = source.target is not None and targets.kind_of(source.target) == "artefact"
    subject = Subject("after", target=source.target, workload=source.workload)
    executable, workload = ready(subject, threads)
    args, kwargs = workload.inputs, workload.kwargs
    runs = [("after", lambda: executable(*args, **kwargs))]
    baseline: dict[str, Figure] = {}
    if is_artefact:
        eager, original = ready(Subject("before", workload=artefact.source_of(target)), threads)
        a, k = original.inputs, original.kwargs
        runs.insert(0, ("before", lambda: eager(*a, **k)))
    c = interleave(runs, seconds=SECONDS)
    figures = {"latency": c["after"].latency}
    ratios = {"latency": c["after"].ratio}
    if is_artefact:
        baseline = {"latency": c["before"].latency}
        figures["size"] = counted(artefact.size_bytes(target), "B")
    else:
        graph = capture(workload)
        figures["macs"] = counted(graph.macs, "MAC")
        figures["params"] = counted(graph.params, "1")
        figures["size"] = counted(stored_bytes(workload.model), "B")
    judge = workload.verify or workload.evaluate
    if judge is not None:
        figures["score"] = quality.score(quality.judge(judge, workload.model))
    return figures, baseline, ratios
