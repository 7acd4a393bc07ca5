"""Measure every candidate of a small search space, so that the search itself can be tested on it.

    python benchmarks/enumerate.py --json tests/search/measured.json

The network is a plain one of five convolutions, trained here on digits within seconds. The table
holds per candidate what the search would predict before any trial, and what a trial measured.
`tests/search/test_measured.py` replays searches on it: no machine is needed there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown.errors import ParedownError
from paredown.graph.capture import capture
from paredown.measure.child import Jobs, Limits
from paredown.measure.fingerprint import fingerprint
from paredown.paring import candidates, measuring, request
from paredown.paring.effort import FEWEST_STEPS, Grant
from paredown.paring.predicting import Accepted
from paredown.paring.prior import Prior, prior
from paredown.paring.run import PRELOAD
from paredown.paring.survey import survey
from paredown.report.progress import Progress, on_stderr
from paredown.search import trial
from paredown.search.space import Candidate, Space
from paredown.workload import Workload
from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit

TO = ["latency <= 0.1x", "drop <= 2%"]
TECHNIQUES = ("bf16", "static-int8", "weight-only", "structured-pruning", "low-rank")
BACKENDS = ("native", "onnxruntime", "openvino")
SIDE, EPOCHS = 48, 14
BATCH = 12
"""Trials per child: importing and warming up are shared, a crash costs this many."""
METRICS = ("latency", "drop", "size")


def network() -> Workload:
    """Five convolutions with batch norm, 48x48 digits, trained with a fixed seed."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (1, 32, 1),
        (32, 64, 2),
        (64, 96, 2),
        (96, 128, 1),
        (128, 128, 2),
    ):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    found = digits.workload(model, size=SIDE, name="five-convolutions")
    assert found.training is not None
    fit(model, [Phase(found.training.batches, EPOCHS)])
    model.eval()
    return found


def several(specs: list[trial.Spec]) -> list[dict[str, Any]]:
    """The job: the bodies of some trials, or why one failed."""
    found: list[dict[str, Any]] = []
    for spec in specs:
        try:
            found.append(trial.run(spec))
        except ParedownError as e:
            found.append({"failed": f"{type(e).__name__}: {e}"})
    return found


def table(asked: request.Request, most: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Enumerate, predict and measure; the whole document but the command."""
    graph = capture(asked.workload)
    found = candidates.choices(asked, graph, Grant(FEWEST_STEPS, 0.1))
    for choice in found.used:
        # Statistics alone: a recovery takes longer than all else together.
        choice.variants.pop("train", None)
    space = replace(candidates.space(asked, found, lambda _: []), spare=(0.0,))
    guess = prior(space, graph, asked.device, scale=asked.workload.scale)
    space.refused = guess.refused
    cache = asked.out / "shared"
    cache.mkdir(parents=True)
    jobs = Jobs(PRELOAD)
    baseline = measuring.baseline(asked, jobs, Accepted())
    guess.baseline = {m: f.value for m, f in baseline.items() if f.value is not None}
    survey(asked, space, guess, jobs, progress)
    goal = candidates.goal(asked, guess.baseline)
    every = space.candidates()
    every = every[:: max(1, round(len(every) / most))]
    progress.start(f"measuring {len(every)} candidates", total=len(every))
    rows: list[dict[str, Any]] = []
    for start in range(0, len(every), BATCH):
        some = every[start : start + BATCH]
        specs = [spec(asked, space, c, start + i, seconds) for i, c in enumerate(some)]
        bodies = jobs.run(several, specs, limits=Limits.default(60.0 * BATCH))
        rows += [row(guess, c, b, goal.metrics) for c, b in zip(some, bodies, strict=True)]
        progress.update(f"{len(rows)} of {len(every)}", done=len(rows))
    progress.close()
    return {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "machine": fingerprint().model_dump(),
        "axes": [[a.name, list(a.options)] for a in space.axes()],
        "limits": [[x.metric, x.op, x.value, x.scale] for x in goal.limits],
        "objective": goal.objective,
        "rows": rows,
    }


def spec(
    asked: request.Request, space: Space, candidate: Candidate, id: int, seconds: float
) -> trial.Spec:
    """One candidate as a trial."""
    folder = measuring.trial_folder(asked.out, id)
    folder.mkdir(parents=True)
    recipe = space.recipe(candidate, target=None, threads=asked.threads, seed=asked.seed)
    return trial.Spec(
        id,
        asked.source,
        recipe,
        folder,
        asked.out / "shared",
        asked.device,
        asked.threads,
        seconds,
        measuring.examples_for(asked, deciding=False),
        seed=asked.seed,
    )


def row(
    guess: Prior, candidate: Candidate, body: dict[str, Any], metrics: list[str]
) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {
        "point": [label for _, label in candidate.point],
        "predicted": {m: float(f"{guess(candidate, m):.6g}") for m in metrics},
    }
    if "failed" in body:
        return {**found, "failed": body["failed"]}
    values = measuring.measured(trial.load(body), guess.baseline, Accepted()).values
    return {**found, "measured": {m: float(f"{values[m]:.6g}") for m in METRICS}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--most", type=int, default=220, help="candidates at most, evenly thinned")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing per candidate")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    workload = network()
    with tempfile.TemporaryDirectory() as scratch:
        asked = request.make(workload, to=TO, only=TECHNIQUES, out=Path(scratch) / "run")
        usable = {b: why for b, why in asked.backends.items() if b in BACKENDS and why is None}
        asked = replace(asked, backends=usable)
        body = table(asked, options.most, options.seconds, on_stderr())
    body["command"] = " ".join(["python", *sys.argv])
    options.json.write_text(json.dumps(body, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
