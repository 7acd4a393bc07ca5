"""The verbs that time: `compare` and `bench`, each side in turns with the others.

Nothing heavy is imported until a verb needs it, so that the lists come without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.errors import InputError
from paredown.result import CompareDoc, PipelineDoc, Side

if TYPE_CHECKING:
    from paredown.figure import Figure
    from paredown.report.progress import Progress
    from paredown.sidebyside import Subject

BENCH_S = 4.0
"""Seconds of timing per side of `compare` and `bench`."""

PIPELINE_LIMIT_S = 600.0


def compare(
    *targets: str,
    threads: int | None = None,
    random_weights: bool = False,
    progress: Progress | None = None,
) -> CompareDoc:
    """Run targets and artefacts side by side, in turns; ratios refer to the first."""
    from paredown.measure.fingerprint import threads_allowed
    from paredown.sidebyside import Subject
    from paredown.targets import short_name

    if len(targets) < 2:
        raise InputError("compare needs at least two targets: pare compare A B ...")
    if len(set(targets)) < len(targets):
        raise InputError("the same target is named twice: `pare bench` already times it twice")
    subjects = [Subject(short_name(t), target=t, random_weights=random_weights) for t in targets]
    return _timed("compare", subjects, threads_allowed(threads), progress)


def bench(
    target: str,
    *,
    backends: Sequence[str] = (),
    threads: int | None = None,
    random_weights: bool = False,
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    progress: Progress | None = None,
) -> CompareDoc:
    """Time one target on its own backend (eager for networks), or on those named, in turns."""
    from paredown import runtime, targets
    from paredown.errors import NotApplicable
    from paredown.measure.fingerprint import threads_allowed
    from paredown.sidebyside import Subject

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if backends and targets.kind_of(target) == "artefact":
        raise InputError(f"{target} is an artefact and has its own backend: leave --backend out")
    for name in backends:
        missing = runtime.backend(name).available()
        if missing:
            raise NotApplicable(f"{name}: {missing}")
    subjects = [
        Subject(
            b or targets.short_name(target), target=target, backend=b, random_weights=random_weights
        )
        for b in dict.fromkeys(backends or [None])
    ]
    return _timed("bench", subjects, threads_allowed(threads), progress)


def pipeline(
    target: str, *, pixels: Sequence[int] = (), random_weights: bool = False
) -> PipelineDoc:
    """What surrounds a vision network when it is served, stage by stage, on this machine.

    ``pixels`` are sides of the square pictures (64, 512, 3000). The target runs on its own backend
    in a fresh process. Raises ``NotApplicable`` for one that reads no pictures.
    """
    from paredown import targets
    from paredown.measure.child import Jobs, Limits

    if targets.kind_of(target) == "artefact":
        raise InputError(f"{target} is an artefact: --pipeline takes the network it was made from")
    found = Jobs().run(
        _served, target, random_weights, tuple(pixels), limits=Limits.default(PIPELINE_LIMIT_S)
    )
    return found.model_copy(update={"target": target})


def _served(target: str, random_weights: bool, pixels: tuple[int, ...]) -> PipelineDoc:
    import torch

    from paredown import runtime, targets
    from paredown.measure.pipeline import PIXELS, profile

    torch.set_num_threads(1)
    workload = targets.validate(targets.resolve(target, random_weights=random_weights))
    return profile(workload, backend=runtime.own_backend(workload), sizes=pixels or PIXELS)


def _timed(
    kind: Any, subjects: list[Subject], threads: int, progress: Progress | None
) -> CompareDoc:
    from paredown.measure.fingerprint import fingerprint
    from paredown.sidebyside import compare as run

    seconds = BENCH_S * len(subjects)
    if progress is not None:
        progress.start(f"timing {', '.join(s.name for s in subjects)}", total=seconds)
    try:
        found = run(subjects, threads=threads, seconds=seconds)
    finally:
        if progress is not None:
            progress.close()
    sides: list[Side] = []
    for i, subject in enumerate(subjects):
        timing = found[subject.name]
        figures = timing.figures()
        size = _size(subject)
        if size is not None:
            figures["size"] = size
        ratios = {k: f for k, f in timing.ratios().items() if k != "throughput"} if i else {}
        sides.append(
            Side(name=subject.name, backend=_backend(subject), figures=figures, ratios=ratios)
        )
    return CompareDoc(
        kind=kind, sides=sides, a_a_ratio=found.a_a, threads=threads, fingerprint=fingerprint()
    )


def _size(subject: Subject) -> Figure | None:
    from paredown import artefact, targets
    from paredown.figure import counted

    if subject.target is None:
        return None
    kind = targets.kind_of(subject.target)
    if kind == "onnx":
        from paredown.workload import stored_bytes

        return counted(stored_bytes(targets.resolve(subject.target).model), "B")
    return counted(artefact.size_bytes(subject.target), "B") if kind == "artefact" else None


def _backend(subject: Subject) -> str:
    from paredown import targets
    from paredown.manifest import read

    if subject.target is not None and targets.kind_of(subject.target) == "artefact":
        return read(Path(subject.target)).backend
    if subject.target is not None and targets.kind_of(subject.target) == "onnx":
        return subject.backend or "onnxruntime"
    return subject.backend or "eager"
