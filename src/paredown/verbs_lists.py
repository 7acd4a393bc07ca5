"""The verbs that list: devices, techniques, papers, networks, claim cards, what is installed.

Nothing heavy is imported until a verb needs it, so that the lists come without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paredown.errors import InputError
from paredown.result import CardsDoc, DeviceDoc, DoctorDoc, PapersDoc, TechniquesDoc, ZooDoc

if TYPE_CHECKING:
    from paredown.device.device import Device
    from paredown.report.progress import Progress


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


def calibrate(deep: bool = False) -> DeviceDoc:
    """Measure this machine anew and keep the result; says on standard error what it is doing.

    ``deep`` times every backend on generated operators instead, up to ten minutes, for predictions.
    """
    from paredown.measure import calibrate as calibration

    if deep:
        return DeviceDoc(devices=[_plain(calibration.deep())])
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


def _plain(device_: Device) -> dict[str, Any]:
    return device_.model_dump(mode="json", exclude_none=True)
