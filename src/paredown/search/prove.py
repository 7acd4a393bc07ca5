"""The last word: artefacts loaded back from disk, judged on other examples, timed side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paredown.figure import Figure, counted
from paredown.measure.child import tell
from paredown.measure.compare import Timed, paired_ratio
from paredown.measure.over_inputs import compared
from paredown.search import pricing
from paredown.search.judging import Examples
from paredown.search.trial import Source

if TYPE_CHECKING:
    from paredown.artefact import Loaded
    from paredown.device.device import Device
    from paredown.runtime.backend import Executable
    from paredown.workload import Workload


@dataclass(frozen=True)
class Proof:
    """What to prove: ``folders`` maps a name to an artefact; the original in its own backend
    is the baseline.

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
        found["predicted"][name] = priced(folder, original, spec.device, loaded[name].executable)
    if spec.timed:
        _time(spec, original, loaded, found)
    return found


def priced(
    folder: Path | str, original: Workload, device: Device, executable: Executable
) -> dict[str, Figure]:
    """The predicted figures of an artefact: of the network its own records rebuild, without the
    savings that its ``executable`` does not confirm.
    """
    from paredown import artefact
    from paredown.cost import price
    from paredown.cost.over_inputs import figures_over_inputs
    from paredown.graph.capture import capture
    from paredown.runtime.eager import EagerExecutable

    if executable.varies and isinstance(executable, EagerExecutable):
        found = figures_over_inputs(executable.workload, device, backend=executable.backend)
        del found["macs"]
        return found
    graph = capture(artefact.rebuilt(folder, source=original))
    lost = pricing.unrealised(executable)
    return pricing.predicted(price(graph, device, backend=executable.backend, unrealised=lost))


def _time(
    spec: Proof, original: Workload, loaded: dict[str, Loaded], found: dict[str, Any]
) -> None:
    """Latency and throughput of every side, interleaved with the original."""
    from paredown import runtime

    tell("timing side by side")
    own = runtime.backend(runtime.own_backend(original))
    baseline = own.lower(original, threads=spec.threads)
    subjects = [("baseline", Timed(baseline, original))]
    subjects += [(name, Timed(x.executable, original)) for name, x in loaded.items()]
    comparison = compared(subjects, seconds=spec.seconds, seed=spec.seed)
    ratios: dict[str, dict[str, Figure]] = found["ratios"]
    for t in comparison.timings:
        found["figures"][t.name] |= t.figures()
        ratios[t.name] = t.ratios()
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
    """The original in its own backend, ready for one warm run."""
    from paredown import runtime

    torch.set_num_threads(threads)
    original = source.get()
    own = runtime.backend(runtime.own_backend(original)).lower(original, threads=threads)
    return own, original.inputs, original.kwargs
