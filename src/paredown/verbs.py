"""What the verbs of `pare` do beside `down`, `plan` and `check`: each returns its result document.

Nothing heavy is imported until a verb needs it, so that the lists come without torch.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from paredown.errors import InputError
from paredown.result import DownDoc, ProfileDoc, ShowDoc
from paredown.verbs_lists import calibrate, device, doctor, papers, reproduce, techniques, zoo
from paredown.verbs_plan import plan_memory, plan_native, plan_serving
from paredown.verbs_timing import bench, compare, pipeline

if TYPE_CHECKING:
    from paredown.recipe import Recipe
    from paredown.report.progress import Progress

__all__ = [
    "apply",
    "bench",
    "calibrate",
    "compare",
    "device",
    "doctor",
    "papers",
    "pipeline",
    "plan_memory",
    "plan_native",
    "plan_serving",
    "profile",
    "reproduce",
    "show",
    "techniques",
    "zoo",
]


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


LARGE = 256 << 20
"""Bytes of a model from which `apply` keeps what it makes in files."""


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
    from paredown.measure.fingerprint import fingerprint, threads_allowed
    from paredown.runtime import spill
    from paredown.runtime.gate import gate

    target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    asked = _recipe(recipe)
    count = threads_allowed(threads or asked.lower.threads)
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
    large = sum(p.nbytes for p in workload.model.parameters()) >= LARGE
    # Before there is a result: the probe of the machine holds memory of its own.
    here = fingerprint()
    # The folder itself is made when there is something to put into it.
    beside = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    with spill.into(beside if large else None):
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
            fingerprint=here,
        )
    return show(str(folder))


def _recipe(text: str) -> Recipe:
    """A recipe file where there is one (or where the text looks like one), else the inline form."""
    from paredown import recipe as recipes

    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return recipes.load(text)
    return recipes.parse_inline(text)


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
