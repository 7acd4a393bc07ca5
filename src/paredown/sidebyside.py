"""Compare targets and artefacts side by side in one fresh child process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paredown.errors import NotApplicable
from paredown.measure.child import Jobs, Limits, tell
from paredown.measure.compare import Comparison, Timed
from paredown.measure.over_inputs import compared

if TYPE_CHECKING:
    from paredown.runtime.backend import Executable
    from paredown.workload import Workload


@dataclass(frozen=True)
class Subject:
    """One side: a target or artefact folder as the user names it, or a workload from Python.

    ``backend`` is the target's own when left out (`runtime.own_backend`), an artefact's always.
    """

    name: str
    target: str | None = None
    workload: Workload | None = None
    backend: str | None = None
    random_weights: bool = False


def compare(
    subjects: list[Subject],
    *,
    threads: int,
    seconds: float,
    jobs: Jobs | None = None,
    limits: Limits | None = None,
) -> Comparison:
    """Time all subjects on their example inputs, interleaved, the first as the baseline."""
    limits = limits or Limits.default(120.0 + 4 * seconds)
    return (jobs or Jobs()).run(_compare, subjects, threads, seconds, limits=limits)


def _compare(subjects: list[Subject], threads: int, seconds: float) -> Comparison:
    runs: list[tuple[str, Timed]] = []
    for s in subjects:
        tell(f"loading {s.name}")
        executable, workload = ready(s, threads)
        runs.append((s.name, Timed(executable, workload)))
    tell("timing")
    return compared(runs, seconds=seconds)


def ready(subject: Subject, threads: int) -> tuple[Executable, Workload]:
    """A subject compiled or loaded, with the workload that holds its example inputs."""
    from paredown import artefact, runtime, targets

    if subject.target is not None and targets.kind_of(subject.target) == "artefact":
        loaded = artefact.load(subject.target, threads=threads)
        return loaded.executable, loaded.workload
    workload = subject.workload or targets.resolve(
        subject.target or "", random_weights=subject.random_weights
    )
    backend = runtime.backend(subject.backend or runtime.own_backend(workload))
    missing = backend.available()
    if missing:
        raise NotApplicable(f"{subject.name}: {missing}")
    reasons = backend.supports(workload, None)
    if reasons:
        raise NotApplicable(f"{subject.name} cannot run on {backend.name}: {'; '.join(reasons)}")
    return backend.lower(workload, threads=threads), workload
