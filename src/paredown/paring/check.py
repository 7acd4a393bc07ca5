"""`check`: a target against a budget, measured or (`--accept predicted`) priced. A gate for CI."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paredown.errors import BudgetError
from paredown.figure import Figure, counted
from paredown.graph.capture import capture
from paredown.measure import memory
from paredown.measure.child import Jobs
from paredown.measure.compare import Timed
from paredown.measure.fingerprint import fingerprint
from paredown.measure.over_inputs import compared
from paredown.paring import predicting, request
from paredown.paring.predicting import Accepted
from paredown.paring.request import Request
from paredown.result import CheckDoc
from paredown.runtime import own_backend
from paredown.search.judging import Examples
from paredown.search.prove import loaded_for_memory, original_for_memory, priced
from paredown.sidebyside import Subject, ready
from paredown.workload import Workload, stored_bytes

if TYPE_CHECKING:
    from paredown.device.device import Device
    from paredown.runtime.backend import Executable
    from paredown.search.trial import Source

SECONDS = 3.0


@dataclass
class Found:
    """What was found of a target and, for an artefact, of the original it was made from."""

    figures: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, Figure] = field(default_factory=dict)
    before: dict[str, Figure] = field(default_factory=dict)
    predicted: dict[str, Figure] = field(default_factory=dict)
    predicted_before: dict[str, Figure] = field(default_factory=dict)
    own_backend: str = "eager"
    """That of the original."""


def check(target: str | nn.Module | Workload, inputs: Any = None, **options: Any) -> CheckDoc:
    """Measure, compare, say so; every option of `pare check` by the same name.

    What is relative (``0.5x``, ``drop``, ``fidelity``) needs an artefact: the network it was made
    from is the baseline. On another ``device``, and for metrics that this machine cannot measure,
    ``accept="predicted"`` lets the cost model say, and the verdict names it. Raises
    `ParedownError` for anything that can be refused before compute is spent.
    """
    asked = request.make(target, inputs, gated=False, **options)
    made_from = _artefact(asked)
    for c in asked.budget:
        if made_from is None and (c.unit == "x" or c.metric in ("drop", "fidelity")):
            raise BudgetError(
                f"{c.text!r} compares with an original: give the artefact that was made from it, "
                "or an absolute limit"
            )
    found = _found(asked, made_from)
    results = asked.budget.judge(
        found.figures, found.before, found.ratios, accept_predicted=asked.accept_predicted
    )
    verdict = asked.budget.verdict(results, strict=asked.strict)
    return CheckDoc(
        target=asked.target,
        device=asked.device.name,
        verdict=verdict,
        met=verdict in ("met", "predicted_met"),
        constraints=results,
        fingerprint=fingerprint(),
    )


def _artefact(asked: Request) -> str | None:
    from paredown import targets

    target = asked.source.target
    return target if target is not None and targets.kind_of(target) == "artefact" else None


def _found(asked: Request, artefact: str | None) -> Found:
    relative = any(c.unit == "x" or c.kind.quality for c in asked.budget)
    found: Found = Jobs().run(
        _measure,
        asked.source,
        artefact,
        # Only what is compared, judged or priced needs the original: an artefact runs without.
        relative or bool(asked.predicted),
        asked.threads,
        asked.device if asked.predicted else None,
        asked.here,
    )
    if asked.here and "memory" in predicting.budgeted(asked.budget):
        found.figures["memory"] = _memory(asked, artefact)
        if artefact is not None and relative:
            found.before["memory"] = memory.measure(
                _original_of, artefact, asked.threads, backend=found.own_backend
            )
    accepted = Accepted(asked.predicted, asked.accept_predicted, found.predicted_before)
    accepted.fill(found.figures, found.ratios, found.predicted)
    accepted.fill(found.before, {}, found.predicted_before)
    return found


def _measure(
    source: Source,
    artefact: str | None,
    compared: bool,
    threads: int,
    device: Device | None,
    timed: bool,
) -> Found:
    """In a child: quality through the executable itself, its time beside the original's, sizes, and
    with a ``device`` its price there.
    """
    from paredown import artefact as artefacts

    torch.set_num_threads(threads)
    found = Found()
    subject = Subject("after", target=source.target, workload=source.workload,
                      random_weights=source.random_weights)  # fmt: skip
    executable, workload = ready(subject, threads)
    original = artefacts.source_of(artefact) if artefact is not None and compared else workload
    found.own_backend = own_backend(original)
    if artefact is not None:
        found.figures["size"] = counted(artefacts.size_bytes(artefact), "B")
    else:
        found.figures["size"] = counted(stored_bytes(workload.model), "B")
    if artefact is None or compared:
        _count(found, artefact, original, executable, device)
    examples = Examples(deciding=True)
    before = examples.scores(original, original.model)
    if artefact is None:
        found.figures |= examples.score(before)
    elif compared:
        found.figures |= examples.judge(original, workload.model, before)
        found.before = {**found.before, **examples.score(before)}
    if timed:
        runs = [("after", Timed(executable, workload))]
        if original is not workload:
            own, _ = ready(Subject("before", workload=original), threads)
            runs.insert(0, ("before", Timed(own, original)))
        _time(found, runs)
    return found


def _count(
    found: Found,
    artefact: str | None,
    original: Workload,
    executable: Executable,
    device: Device | None,
) -> None:
    """MACs, parameters and predicted figures of the network and of its original."""
    from paredown import artefact as artefacts

    graph = capture(original)
    before = {"macs": counted(graph.macs, "MAC"), "params": counted(graph.params, "1")}
    if artefact is None:
        found.figures |= before
        if device is not None:
            found.predicted = predicting.original(graph, device)
        return
    found.before = {**before, "size": counted(stored_bytes(original.model), "B")}
    now = capture(artefacts.rebuilt(artefact, source=original))
    found.figures |= {"macs": counted(now.macs, "MAC"), "params": counted(now.params, "1")}
    if device is not None:
        found.predicted = priced(artefact, original, device, executable)
        found.predicted_before = predicting.original(graph, device)


def _time(found: Found, runs: list[tuple[str, Timed]]) -> None:
    c = compared(runs, seconds=SECONDS)
    for name, figures in (("before", found.before), ("after", found.figures)):
        if any(name == run for run, _ in runs):
            figures |= c[name].figures()
    if len(runs) > 1:
        found.ratios |= c["after"].ratios()


def _memory(asked: Request, artefact: str | None) -> Figure:
    from pathlib import Path

    from paredown import artefact as artefacts

    if artefact is None:
        own = asked.own_backend
        return memory.measure(original_for_memory, asked.source, asked.threads, backend=own)
    backend = artefacts.check(artefact).backend
    return memory.measure(loaded_for_memory, Path(artefact), asked.threads, backend=backend)


def _original_of(artefact: str, threads: int) -> Any:
    from paredown import artefact as artefacts
    from paredown.search.trial import Source as From

    return original_for_memory(From(workload=artefacts.source_of(artefact)), threads)
