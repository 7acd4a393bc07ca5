"""The last word: artefacts loaded back from disk, judged on other examples, timed side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paredown.figure import Figure, counted
from paredown.measure.child import tell
from paredown.measure.compare import interleave, inverse, paired_ratio
from paredown.search import trial
from paredown.search.trial import Source

if TYPE_CHECKING:
    from paredown.workload import Workload


@dataclass(frozen=True)
class Proof:
    """What to prove: ``folders`` maps a name to an artefact; the eager original is the baseline.

    ``split`` are the indices of `evaluate` that decide when there is no `verify`.
    """

    source: Source
    folders: dict[str, Path]
    threads: int
    seconds: float
    split: np.ndarray | None = None
    seed: int = 0


def prove(spec: Proof) -> dict[str, Any]:
    """The job. Returns ``{"figures": {name: {...}}, "ratios": {name: {...}}, "a_a": Figure}``."""
    from paredown import artefact, runtime

    torch.set_num_threads(spec.threads)
    original = spec.source.get()
    tell("loading the artefacts back from disk")
    loaded = {
        name: artefact.load(folder, threads=spec.threads, source=original)
        for name, folder in spec.folders.items()
    }
    tell("judging on held-out examples")
    figures = {name: _judged(spec, original, x.module) for name, x in loaded.items()}
    figures["baseline"] = _baseline_score(spec, original)
    for name, folder in spec.folders.items():
        figures[name]["size"] = counted(artefact.size_bytes(folder), "B")
    tell("timing side by side")
    baseline = runtime.backend("eager").lower(original, threads=spec.threads)
    args, kwargs = original.inputs, original.kwargs
    subjects = [("baseline", lambda: baseline(*args, **kwargs))]
    for name, x in loaded.items():
        subjects.append((name, lambda e=x.executable: e(*args, **kwargs)))
    comparison = interleave(subjects, seconds=spec.seconds, seed=spec.seed)
    ratios: dict[str, dict[str, Figure]] = {}
    for t in comparison.timings:
        figures[t.name] |= {"latency": t.latency, "throughput": inverse(t.latency, "runs/s")}
        ratios[t.name] = {"latency": t.ratio, "throughput": inverse(t.ratio, "x")}
    if "single" in loaded:
        pair = paired_ratio(comparison["after"].halves, comparison["single"].halves, spec.seed)
        ratios["after"]["latency:best_single_backend"] = pair
    return {
        "figures": figures,
        "ratios": ratios,
        "a_a": comparison.a_a,
    }


def loaded_for_memory(folder: Path, threads: int, source: Source) -> Any:
    """An artefact ready for one warm run, as `measure.memory` loads it in its own child."""
    from paredown import artefact
    from paredown.manifest import REBUILT

    torch.set_num_threads(threads)
    rebuilt = artefact.check(folder).backend in REBUILT
    loaded = artefact.load(folder, threads=threads, source=source.get() if rebuilt else None)
    return loaded.executable, loaded.workload.inputs, loaded.workload.kwargs


def original_for_memory(source: Source, threads: int) -> Any:
    """The eager original ready for one warm run."""
    from paredown import runtime

    torch.set_num_threads(threads)
    original = source.get()
    eager = runtime.backend("eager").lower(original, threads=threads)
    return eager, original.inputs, original.kwargs


def _judged(spec: Proof, original: Workload, model: torch.nn.Module) -> dict[str, Figure]:
    from paredown import quality
    from paredown.search.trial import FIDELITY_INPUTS

    calls = list(original.calibration_inputs())[:FIDELITY_INPUTS]
    figures = {"fidelity": quality.compare(original.model, model, calls)}
    judge = original.verify or original.evaluate
    if judge is None:
        return figures
    before = _scores(spec, original, original.model)
    after = _scores(spec, original, model)
    figures["score"] = quality.score(after, seed=spec.seed)
    figures["drop"] = quality.drop(before, after, seed=spec.seed)
    return figures


def _baseline_score(spec: Proof, original: Workload) -> dict[str, Figure]:
    from paredown import quality

    if original.verify is None and original.evaluate is None:
        return {}
    return {"score": quality.score(_scores(spec, original, original.model), seed=spec.seed)}


def _scores(spec: Proof, original: Workload, model: torch.nn.Module) -> float | np.ndarray:
    from paredown import quality

    judge = original.verify or original.evaluate
    assert judge is not None
    who = "verify" if original.verify is not None else "evaluate"
    found = quality.judge(judge, model, who=who)
    split = spec.split if original.verify is None else None
    return trial.part(found, split)
