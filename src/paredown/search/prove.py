"""The last word: artefacts loaded back from disk, judged on other examples, timed side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paredown.figure import Figure, counted
from paredown.measure.child import tell
from paredown.measure.compare import interleave, inverse, paired_ratio
from paredown.search import pricing
from paredown.search.judging import Examples
from paredown.search.trial import Source

if TYPE_CHECKING:
    from paredown.artefact import Loaded
    from paredown.device.device import Device
    from paredown.workload import Workload


@dataclass(frozen=True)
class Proof:
    """What to prove: ``folders`` maps a name to an artefact; the eager original is the baseline.

    With another device than this machine nothing is ``timed``: the artefacts, read back from disk,
    are priced on ``device`` instead.
    """

    source: Source
    folders: dict[str, Path]
    device: Device
    threads: int
    seconds: float
    examples: Examples
    timed: bool = True
    seed: int = 0


def prove(spec: Proof) -> dict[str, Any]:
    """The job. Returns ``{"figures": {name: {...}}, "ratios": {name: {...}}, "predicted": {name:
    {...}}, "a_a": Figure or None}``.
    """
    from paredown import artefact

    torch.set_num_threads(spec.threads)
    original = spec.source.get()
    tell("loading the artefacts back from disk")
    loaded = {
        name: artefact.load(folder, threads=spec.threads, source=original)
        for name, folder in spec.folders.items()
    }
    tell("judging on held-out examples")
    before = spec.examples.scores(original, original.model)
    found: dict[str, Any] = {
        "figures": {n: spec.examples.judge(original, x.module, before) for n, x in loaded.items()},
        "ratios": {},
        "predicted": {},
        "a_a": None,
    }
    found["figures"]["baseline"] = spec.examples.score(before)
    tell("pricing")
    for name, folder in spec.folders.items():
        found["figures"][name]["size"] = counted(artefact.size_bytes(folder), "B")
        found["predicted"][name] = priced(folder, original, spec.device)
    if spec.timed:
        _time(spec, original, loaded, found)
    return found


def priced(folder: Path, original: Workload, device: Device) -> dict[str, Figure]:
    """The predicted figures of an artefact: of the network its own records rebuild."""
    from paredown import artefact
    from paredown.cost import price
    from paredown.graph.capture import capture

    graph = capture(artefact.rebuilt(folder, source=original))
    return pricing.predicted(price(graph, device, backend=artefact.check(folder).backend))


def _time(
    spec: Proof, original: Workload, loaded: dict[str, Loaded], found: dict[str, Any]
) -> None:
    """Latency and throughput of every side, interleaved with the eager original."""
    from paredown import runtime

    tell("timing side by side")
    baseline = runtime.backend("eager").lower(original, threads=spec.threads)
    args, kwargs = original.inputs, original.kwargs
    subjects = [("baseline", lambda: baseline(*args, **kwargs))]
    for name, x in loaded.items():
        subjects.append((name, lambda e=x.executable: e(*args, **kwargs)))
    comparison = interleave(subjects, seconds=spec.seconds, seed=spec.seed)
    ratios: dict[str, dict[str, Figure]] = found["ratios"]
    for t in comparison.timings:
        rate = inverse(t.latency, "runs/s")
        found["figures"][t.name] |= {"latency": t.latency, "throughput": rate}
        ratios[t.name] = {"latency": t.ratio, "throughput": inverse(t.ratio, "x")}
    if "single" in loaded:
        pair = paired_ratio(comparison["after"].halves, comparison["single"].halves, spec.seed)
        ratios["after"]["latency:best_single_backend"] = pair
    found["a_a"] = comparison.a_a


def loaded_for_memory(folder: Path, threads: int, source: Source | None = None) -> Any:
    """An artefact ready for one warm run, as `measure.memory` loads it in its own child; without
    ``source`` it is rebuilt on the one that it records.
    """
    from paredown import artefact
    from paredown.manifest import REBUILT

    torch.set_num_threads(threads)
    rebuilt = artefact.check(folder).backend in REBUILT
    given = source.get() if rebuilt and source is not None else None
    loaded = artefact.load(folder, threads=threads, source=given)
    return loaded.executable, loaded.workload.inputs, loaded.workload.kwargs


def original_for_memory(source: Source, threads: int) -> Any:
    """The eager original ready for one warm run."""
    from paredown import runtime

    torch.set_num_threads(threads)
    original = source.get()
    eager = runtime.backend("eager").lower(original, threads=threads)
    return eager, original.inputs, original.kwargs
