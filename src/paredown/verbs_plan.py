"""The verbs that plan: the native engine's steps, places in an arena, serving a language model.

Nothing heavy is imported until a verb needs it, so that the lists come without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paredown.errors import InputError
from paredown.result import MemoryPlanDoc, NativePlanDoc, ServingPlanDoc

if TYPE_CHECKING:
    from paredown.report.progress import Progress


def plan_native(
    target: str, *, threads: int | None = None, random_weights: bool = False
) -> NativePlanDoc:
    """How the native engine would run a target at its example shapes. Nothing is timed."""
    from paredown import runtime, targets
    from paredown.errors import NotApplicable
    from paredown.measure.fingerprint import threads_allowed
    from paredown.runtime.native.show import document

    backend = runtime.backend("native")
    if missing := backend.available():
        raise NotApplicable(f"native: {missing}")
    workload = targets.resolve(target, random_weights=random_weights)
    return document(
        backend.lower(workload, threads=threads_allowed(threads)), targets.short_name(target)
    )


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


def plan_serving(
    model: str,
    *,
    device: str = "dgx-h100",
    batch: int = 1,
    context: int = 4096,
    attention_device: str | None = None,
) -> ServingPlanDoc:
    """How a language model would be served on a device, by formula (`cost.serving`).

    ``model`` is one of its catalogue, a TOML file, or a Hugging Face folder or ``config.json``; no
    weights are read. Raises ``UnknownName``, ``InputError`` for a file that does not say enough,
    ``NotApplicable`` for a device that cannot hold a language model.
    """
    from paredown import device as devices
    from paredown.cost.serving import load
    from paredown.cost.serving.plan import plan

    shape = load(model)
    other = devices.load(attention_device) if attention_device is not None else None
    where = devices.load(device)
    return plan(shape, where, batch=batch, context=context, attention=other)
