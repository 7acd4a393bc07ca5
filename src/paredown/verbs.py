"""What the verbs of `pare` do beside `down`, `plan` and `check`: each returns its result document.

Nothing heavy is imported until a verb needs it, so that the lists come without torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.errors import InputError
from paredown.result import (
    CardsDoc,
    CompareDoc,
    DeviceDoc,
    DoctorDoc,
    DownDoc,
    MemoryPlanDoc,
    NativePlanDoc,
    PapersDoc,
    ProfileDoc,
    ShowDoc,
    Side,
    TechniquesDoc,
    ZooDoc,
)

if TYPE_CHECKING:
    from paredown.device.device import Device
    from paredown.figure import Figure
    from paredown.recipe import Recipe
    from paredown.report.progress import Progress
    from paredown.sidebyside import Subject

BENCH_S = 4.0
"""Seconds of timing per side of `compare` and `bench`."""


def profile(
    target: str,
    *,
    device: str = "this",
    measure: bool = False,
    train: bool = False,
    html: str | None = None,
    random_weights: bool = False,
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
) -> ProfileDoc:
    """Where the time, memory and data movement of a target go, priced on ``device``.

    ``measure`` times every operator here as well (eager, all allowed cores), which needs ``this``.
    ``run`` (``generate``), ``prompt_tokens`` and ``new_tokens`` say what one run of a Hugging Face
    target is. ``html`` names a page to write. Raises ``InputError`` before any work for a page that
    cannot be written or a device that cannot be measured.
    """
    from paredown import artefact, manifest, runtime, targets
    from paredown import device as devices
    from paredown.cost.profile import profile as priced
    from paredown.graph.capture import capture
    from paredown.measure.fingerprint import fingerprint

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    page = _page(html)
    if measure and device != "this":
        raise InputError(f"--measure times this machine: it cannot be given with --device {device}")
    if targets.kind_of(target) == "artefact":
        if measure:
            raise InputError(f"{target} is an artefact: `pare bench {target}` times it")
        workload, backend = artefact.rebuilt(target), manifest.check(target).backend
    else:
        workload = targets.resolve(target, random_weights=random_weights)
        backend = runtime.own_backend(workload)
        if measure and backend != "eager":
            raise InputError(
                f"{target}: {backend} does not time its operators one by one; "
                f"`pare bench {target}` times it whole"
            )
    where = devices.load(device)
    if measure:
        from paredown.measure.selftime import self_times

        targets.validate(workload)
        graph = capture(workload, train=train)
        again = partial(targets.resolve, target, random_weights=random_weights)
        taken, notes = self_times(again, graph, threads=where.threads, train=train)
        doc = priced(workload, where, train=train, measured=taken, graph=graph)
        doc = doc.model_copy(update={"notes": [*doc.notes, *notes]})
    else:
        doc = priced(workload, where, train=train, backend=backend)
    machine = fingerprint() if measure else fingerprint(probe=False) if device == "this" else None
    doc = doc.model_copy(update={"target": target, "fingerprint": machine})
    if page is not None:
        from paredown import report

        report.write(doc, page)
    return doc


def show(folder: str) -> ShowDoc:
    """An artefact's manifest, recipe and result, after checking every file; runs nothing of it."""
    import json

    from paredown import yamlform
    from paredown.errors import ArtefactError
    from paredown.manifest import check

    manifest = check(folder)
    where = Path(folder)
    recipe = yamlform.load((where / "recipe.yaml").read_text(encoding="utf-8"))
    result = where / "result.json"
    found = None
    if result.exists():
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
            DownDoc.model_validate(found)
        except ValueError as e:
            raise ArtefactError(f"{result} is damaged: {str(e).splitlines()[0]}") from None
    return ShowDoc(
        folder=folder,
        manifest=manifest.model_dump(mode="json", by_alias=True),
        recipe=recipe,
        result=found,
    )


def apply(
    recipe: str,
    target: str,
    *,
    out: str,
    backend: str | None = None,
    threads: int | None = None,
    random_weights: bool = False,
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    progress: Progress | None = None,
) -> ShowDoc:
    """Carry a recipe out on a target and save the artefact in ``out``; returns what `show` does.

    ``recipe`` is a file or the inline form. The executable is compared with the rewritten network
    before anything is saved (``GateError``). Raises ``RecipeError``, ``NotApplicable``.
    """
    import torch

    from paredown import artefact, recipe as recipes, runtime, targets  # isort: skip
    from paredown.errors import NotApplicable
    from paredown.files import writable
    from paredown.measure.fingerprint import fingerprint
    from paredown.runtime.gate import gate

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    asked = _recipe(recipe)
    count = _threads(threads or asked.lower.threads)
    if backend is not None:
        asked = asked.model_copy(
            update={"lower": asked.lower.model_copy(update={"backend": backend})}
        )
    on = runtime.backend(asked.lower.backend)
    missing = on.available()
    if missing:
        raise NotApplicable(f"{on.name}: {missing}")
    folder = writable(out, keep=False)
    say = progress.update if progress is not None else None
    workload = targets.validate(targets.resolve(target, random_weights=random_weights))
    torch.set_num_threads(count)
    applied = recipes.run(asked, workload, progress=say)
    reasons = on.supports(applied.workload, None)
    if reasons:
        raise NotApplicable(f"{on.name} cannot run the result: {'; '.join(reasons)}")
    executable = on.lower(applied.workload, threads=count)
    gate(executable, applied.workload).demand()
    artefact.save(
        folder,
        workload=applied.workload,
        executable=executable,
        recipe=applied.recipe,
        changes=applied.changes,
        fingerprint=fingerprint(),
    )
    return show(str(folder))


def compare(
    *targets: str,
    threads: int | None = None,
    random_weights: bool = False,
    progress: Progress | None = None,
) -> CompareDoc:
    """Run targets and artefacts side by side, in turns; ratios refer to the first."""
    from paredown.sidebyside import Subject

    if len(targets) < 2:
        raise InputError("compare needs at least two targets: pare compare A B ...")
    if len(set(targets)) < len(targets):
        raise InputError("the same target is named twice: `pare bench` already times it twice")
    subjects = [Subject(_name(t), target=t, random_weights=random_weights) for t in targets]
    return _timed("compare", subjects, _threads(threads), progress)


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
    from paredown.sidebyside import Subject

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    if backends and targets.kind_of(target) == "artefact":
        raise InputError(f"{target} is an artefact and has its own backend: leave --backend out")
    for name in backends:
        missing = runtime.backend(name).available()
        if missing:
            raise NotApplicable(f"{name}: {missing}")
    subjects = [
        Subject(b or _name(target), target=target, backend=b, random_weights=random_weights)
        for b in dict.fromkeys(backends or [None])
    ]
    return _timed("bench", subjects, _threads(threads), progress)


def plan_native(
    target: str, *, threads: int | None = None, random_weights: bool = False
) -> NativePlanDoc:
    """How the native engine would run a target at its example shapes. Nothing is timed."""
    from paredown import runtime, targets
    from paredown.errors import NotApplicable
    from paredown.runtime.native.show import document

    backend = runtime.backend("native")
    if missing := backend.available():
        raise NotApplicable(f"native: {missing}")
    workload = targets.resolve(target, random_weights=random_weights)
    return document(backend.lower(workload, threads=_threads(threads)), _name(target))


def plan_memory(
    buffers: str,
    *,
    capacity: int,
    out: str | None = None,
    seconds: float = 10.0,
    progress: Progress | None = None,
) -> MemoryPlanDoc:
    """Places in an arena of ``capacity`` bytes for the buffers of a CSV file (`cost.arena`).

    ``out`` names the CSV file to write; nothing is written where there is no room. Raises
    ``InputError`` for a bad file, ``Undecided`` where no plan that fits was found within
    ``seconds`` and none was excluded.
    """
    from paredown.cost.arena import peak_step, place, table
    from paredown.errors import Undecided
    from paredown.files import write_text
    from paredown.report.memory_plan import csv_text, summary
    from paredown.result import PlacedBuffer

    if capacity < 0:
        raise InputError(f"--capacity must not be negative, got {capacity}")
    given = table.read(buffers)
    found = place(given, capacity=capacity, seconds=seconds)
    if found.how != "no room" and found.height > capacity:
        raise Undecided(
            f"{buffers}: no plan within {capacity} B was found in {seconds:g} s, nor proven "
            f"impossible: the smallest takes {found.height} B, every one at least {found.bound} B; "
            "more --seconds may decide it"
        )
    step, _ = peak_step(given)
    there = [b for b in given if b.lower <= step < b.upper]
    doc = MemoryPlanDoc(
        source=buffers,
        capacity_bytes=capacity,
        arena_bytes=found.height,
        lower_bound_bytes=found.bound,
        certificate=found.how,
        proof=found.proof,
        load_bytes=found.load,
        peak_step=step,
        at_peak=[b.id for b in sorted(there, key=lambda b: -b.size)],
        greedy_bytes=found.greedy_height,
        nodes=found.nodes,
        buffers=[
            PlacedBuffer(id=b.id, lower=b.lower, upper=b.upper, size=b.size,
                         offset=found.offsets[b.id])
            for b in given
        ],
        out=out,
    )  # fmt: skip
    if out is not None and doc.certificate != "no room":
        write_text(out, csv_text(doc))
    if progress is not None:
        progress.note(summary(doc))
    return doc


def device(name: str | None = None) -> DeviceDoc:
    """One device in full, or every device; `this` is listed only once it was calibrated."""
    from paredown import device as devices
    from paredown.measure import calibrate
    from paredown.measure.fingerprint import fingerprint

    if name is not None:
        return DeviceDoc(devices=[_plain(devices.load(name))])
    known = [n for n in devices.names() if n != "this"]
    kept = calibrate.read(calibrate.cached_at(fingerprint(probe=False)))
    found = [kept[0]] if kept is not None else []
    return DeviceDoc(devices=[_plain(d) for d in (*found, *map(devices.load, known))])


def calibrate() -> DeviceDoc:
    """Measure this machine anew and keep the result; says on standard error what it is doing."""
    from paredown.measure import calibrate as calibration

    return DeviceDoc(devices=[_plain(calibration.this(refresh=True))])


def techniques(
    *,
    target: str | None = None,
    random_weights: bool = False,
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
) -> TechniquesDoc:
    """Every technique; for a target, whether each applies, at how many sites, or why not."""
    from paredown.techniques import listing

    if target is None:
        return TechniquesDoc(techniques=listing.rows())
    from paredown import targets
    from paredown.graph.capture import capture

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    workload = targets.resolve(target, random_weights=random_weights)
    rows = listing.rows_for(workload, capture(workload))
    return TechniquesDoc(target=target, techniques=rows)


def papers(key: str | None = None) -> PapersDoc:
    """The catalogue, or one entry of it."""
    from paredown.papers import catalogue, entry

    return PapersDoc(papers=[entry(key)] if key is not None else catalogue())


def zoo(name: str | None = None) -> ZooDoc:
    """Every network with its kept counts, or one counted now. Raises ``UnknownName``."""
    from paredown.zoo import row, rows

    return ZooDoc(networks=[row(name)] if name is not None else rows())


def reproduce(
    keys: Sequence[str] = (),
    *,
    all: bool = False,
    scale: str = "quick",
    progress: Progress | None = None,
) -> CardsDoc:
    """Run the claim cards of these papers, or of all that have one."""
    from paredown.papers import card_keys
    from paredown.papers import reproduce as run

    if all and keys:
        raise InputError("--all and keys exclude each other")
    if not all and not keys:
        raise InputError(f"name papers, or --all; cards: {', '.join(card_keys())}")
    return run(card_keys() if all else keys, scale, progress.note if progress is not None else None)


def doctor() -> DoctorDoc:
    """What is installed, what is missing, and how to get it; never fails."""
    from paredown.doctor import rows

    return DoctorDoc(rows=rows())


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
        return counted(targets.resolve(subject.target).model.stored_bytes(), "B")  # type: ignore[operator]
    return counted(artefact.size_bytes(subject.target), "B") if kind == "artefact" else None


def _backend(subject: Subject) -> str:
    from paredown import targets
    from paredown.manifest import read

    if subject.target is not None and targets.kind_of(subject.target) == "artefact":
        return read(Path(subject.target)).backend
    if subject.target is not None and targets.kind_of(subject.target) == "onnx":
        return subject.backend or "onnxruntime"
    return subject.backend or "eager"


def _recipe(text: str) -> Recipe:
    """A recipe file where there is one (or where the text looks like one), else the inline form."""
    from paredown import recipe as recipes

    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return recipes.load(text)
    return recipes.parse_inline(text)


def _plain(device_: Device) -> dict[str, Any]:
    return device_.model_dump(mode="json", exclude_none=True)


def _threads(asked: int | None) -> int:
    cores = len(os.sched_getaffinity(0))
    if asked is not None and not 1 <= asked <= cores:
        raise InputError(f"--threads {asked}: this process may use 1 to {cores}")
    return asked or cores


def _name(target: str) -> str:
    """A short name for a target: the folder's or the file's own."""
    return target if ":" in target else Path(target).name


def _page(html: str | None) -> Path | None:
    """Where a page goes; refused before any work where it cannot be written."""
    if html is None:
        return None
    path = Path(html)
    if path.is_dir():
        raise InputError(f"--html {html}: that is a folder; name a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--html {html}: its folder cannot be written")
    return path
