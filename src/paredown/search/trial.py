"""One candidate, start to end, inside its own process: rewrite, lower, gate, judge, time, save.

The result is written into the trial's folder before it is returned, so that a parent killed in
between finds it again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paredown.errors import NotApplicable
from paredown.figure import Figure, counted
from paredown.measure.child import tell
from paredown.measure.compare import Timed, Timing
from paredown.measure.over_inputs import compared
from paredown.search import pricing
from paredown.search.judging import Examples, Scores

if TYPE_CHECKING:
    from paredown.device.device import Device
    from paredown.recipe import Recipe, Step
    from paredown.runtime.backend import Executable
    from paredown.technique import Change
    from paredown.workload import Workload

RESULT = "trial.json"


@dataclass(frozen=True)
class Source:
    """How a child gets the workload: by the user's reference, or sent from Python."""

    target: str | None = None
    workload: Workload | None = None
    random_weights: bool = False

    def get(self) -> Workload:
        """The workload, built anew or as sent."""
        if self.workload is not None:
            return self.workload
        from paredown import targets

        return targets.resolve(self.target or "", random_weights=self.random_weights)


@dataclass(frozen=True)
class Spec:
    """What one trial has to do. ``cache`` holds what trials share; ``timed`` is False where the
    device is another machine: then nothing that is timed here may count.
    """

    id: int
    source: Source
    recipe: Recipe
    folder: Path
    cache: Path
    device: Device
    threads: int
    seconds: float
    examples: Examples = field(default_factory=Examples)
    timed: bool = True
    seed: int = 0


@dataclass
class Report:
    """What a trial found; ``detail`` stays in the trial's folder, the rest goes to the store."""

    figures: dict[str, Figure]
    ratios: dict[str, Figure]
    predicted: dict[str, Figure]
    sites: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def dump(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "figures": _dump(self.figures),
            "ratios": _dump(self.ratios),
            "predicted": _dump(self.predicted),
            "sites": self.sites,
            "notes": self.notes,
            "detail": self.detail,
            "seconds": self.seconds,
        }


def load(body: Mapping[str, Any]) -> Report:
    """A report from its JSON-able form."""
    return Report(
        {k: Figure.model_validate(v) for k, v in body["figures"].items()},
        {k: Figure.model_validate(v) for k, v in body["ratios"].items()},
        {k: Figure.model_validate(v) for k, v in body["predicted"].items()},
        list(body["sites"]),
        list(body["notes"]),
        dict(body["detail"]),
        float(body["seconds"]),
    )


def run(spec: Spec) -> dict[str, Any]:
    """The job: returns `Report.dump` and leaves an artefact and `trial.json` in the folder."""
    from paredown import artefact, runtime
    from paredown.runtime.facade import Facade
    from paredown.runtime.gate import gate

    start = time.perf_counter()
    torch.set_num_threads(spec.threads)
    original = spec.source.get()
    backend = runtime.backend(spec.recipe.lower.backend)
    tell("rewriting")
    workload, changes = rewrite(spec, original)
    reasons = backend.supports(workload, None)
    if reasons:
        raise NotApplicable(f"{backend.name}: {'; '.join(reasons)}")
    tell("lowering")
    executable = backend.lower(workload, threads=spec.threads)
    gate(executable, workload).demand()
    tell("saving")
    artefact.save(
        spec.folder / "artefact",
        workload=workload,
        executable=executable,
        recipe=spec.recipe,
        changes=changes,
        fingerprint=None,
    )
    report = Report({}, {}, {})
    report.figures["size"] = counted(artefact.size_bytes(spec.folder / "artefact"), "B")
    tell("judging")
    facade = Facade(executable, workload)
    before = original_scores(spec, original)
    report.figures.update(spec.examples.judge(original, facade, before))
    if spec.timed:
        tell("timing")
        taken = timed(spec, original, executable)
        report.figures |= taken.figures()
        report.ratios |= taken.ratios()
    tell("pricing")
    _price(spec, workload, executable, report)
    report.sites = site_reports(changes, executable)
    report.notes = [n for c in changes for n in c.notes]
    report.seconds = time.perf_counter() - start
    body = report.dump()
    temporary = spec.folder / (RESULT + ".tmp")
    temporary.write_text(json.dumps(body))
    temporary.replace(spec.folder / RESULT)
    return body


def rewrite(spec: Spec, original: Workload) -> tuple[Workload, list[Change]]:
    """Carry out the recipe. What another trial did already (the same steps for another backend, the
    same cut before another number format) is taken from the cache.
    """
    return _shared(spec, original, list(spec.recipe.ordered().steps))


def _shared(spec: Spec, original: Workload, steps: list[Step]) -> tuple[Workload, list[Change]]:
    from paredown import recipe as recipes
    from paredown.registry import technique
    from paredown.search import shared
    from paredown.technique import Stage

    if not steps:
        return original, []
    text = json.dumps([s.model_dump() for s in steps], sort_keys=True)
    folder = spec.cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    if folder.exists():
        return shared.restore(folder, original)
    cut = [s for s in steps if technique(s.technique).stage <= Stage.RECOVERY]
    start, changes = _shared(spec, original, cut) if len(cut) < len(steps) else (original, [])
    rest = steps[len(cut) :] if len(cut) < len(steps) else steps
    applied = recipes.run(spec.recipe.model_copy(update={"steps": rest}), start)
    changes = [*changes, *applied.changes]
    shared.keep(folder, applied.workload, changes)
    return applied.workload, changes


def original_scores(spec: Spec, original: Workload) -> Scores | None:
    """The original's scores on the guiding examples, judged once per search."""
    kept = spec.cache / "original_scores.npy"
    if kept.exists():
        found = np.load(kept)
        return float(found) if found.ndim == 0 else found
    found = spec.examples.scores(original, original.model)
    if found is None:
        return None
    temporary = kept.with_suffix(".tmp.npy")
    np.save(temporary, np.asarray(found))
    temporary.replace(kept)
    return found


def timed(spec: Spec, original: Workload, executable: Executable) -> Timing:
    """Times of the executable and their ratios to the original in its own backend, interleaved."""
    from paredown import runtime

    own = runtime.backend(runtime.own_backend(original))
    baseline = own.lower(original, threads=spec.threads)
    comparison = compared(
        [("baseline", Timed(baseline, original)), ("candidate", Timed(executable, original))],
        seconds=spec.seconds,
        seed=spec.seed,
    )
    return comparison["candidate"]


def _price(spec: Spec, workload: Workload, executable: Executable, report: Report) -> None:
    from paredown.cost import price
    from paredown.cost.over_inputs import figures_over_inputs
    from paredown.graph.capture import capture

    priced = price(
        capture(workload),
        spec.device,
        backend=spec.recipe.lower.backend,
        unrealised=pricing.unrealised(executable),
    )
    report.predicted = pricing.predicted(priced)
    report.figures["macs"] = priced.macs
    if executable.varies:
        found = figures_over_inputs(workload, spec.device, backend=spec.recipe.lower.backend)
        report.figures["macs"] = found.pop("macs")
        report.predicted |= found
    report.figures["params"] = priced.params
    report.detail = {
        "modules": [r.model_dump() for r in priced.modules()],
        "memory": [r.model_dump() for r in priced.memory()],
        "operators": [r.model_dump() for r in priced.operators()],
        "waterline": priced.waterline(),
    }


def site_reports(changes: list[Change], executable: Executable) -> list[dict[str, Any]]:
    """What became of each site: a saving that the executable does not confirm is `simulated`."""
    from paredown.technique import Lowers, Touches

    numeric = {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE}
    rows: list[dict[str, Any]] = []
    for c in changes:
        asked = [s for s, touched in c.touched.items() if touched & numeric]
        lost = executable.realised(c.technique, asked, c.workload.aliases).lost if asked else {}
        for site, _touched in c.touched.items():
            simulated = site in lost and Lowers.TIME in c.lowers
            rows.append(
                {
                    "site": site,
                    "technique": c.technique,
                    "outcome": "simulated" if simulated else "real",
                    "detail": lost.get(site, ""),
                }
            )
    return rows


def _dump(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {k: f.model_dump() for k, f in figures.items()}
