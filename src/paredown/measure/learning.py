"""`pare calibrate --deep`: chains timed in children, curves fitted, both kept beside the device.

`device-KEY.json` gets two companions: `device-KEY.chains.jsonl`, a line for each chain timed, and
`device-KEY.learned.json`, the curves. Stopped at any moment, the next call goes on with the chains.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from paredown import files
from paredown.device.learned import Learned
from paredown.errors import ParedownError
from paredown.measure.fingerprint import versions

if TYPE_CHECKING:
    from paredown.device.device import Device

SCHEMA = 2
SECONDS = 480.0
"""Of timing all backends together: what is left then is timed by the next call."""
Tell = Callable[[str, int, int], None]


def chains_at(device_file: Path) -> Path:
    """Where the times of chains are kept."""
    return device_file.with_suffix(".chains.jsonl")


def learned_at(device_file: Path) -> Path:
    """Where the curves are kept."""
    return device_file.with_suffix(".learned.json")


def read(device_file: Path) -> Device | None:
    """A device with the curves beside its file; None where there are none, or of other versions.

    Curves go with the figures they were learned with: a later calibration leaves both as they are.
    """
    from paredown.device.device import Device

    try:
        data = json.loads(learned_at(device_file).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or data["versions"] != versions():
            return None
        learned = Learned.model_validate(data["learned"])
        return Device.model_validate(data["device"]).model_copy(update={"learned": learned})
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def keep(learned: Learned, device: Device, device_file: Path) -> None:
    """Write the curves and the figures they were learned with beside a device's file."""
    body = {
        "schema": SCHEMA,
        "versions": versions(),
        "device": device.model_dump(mode="json", exclude={"learned"}),
        "learned": learned.model_dump(mode="json"),
    }
    files.write_text(learned_at(device_file), json.dumps(body))


def learn(device: Device, device_file: Path, tell: Tell, seconds: float = SECONDS) -> Learned:
    """Time what was not timed yet on every backend there is, fit, keep and return the curves.

    ``tell`` gets a backend's name, its chains done and all of them. A backend that fails as a whole
    has no curves: it is priced as before.
    """
    from paredown import runtime
    from paredown.measure import curves, deep
    from paredown.measure.child import Jobs, Limits

    path = chains_at(device_file)
    there = [b for b in deep.BACKENDS if runtime.backend(b).available() is None]
    jobs, end = Jobs(), time.monotonic() + seconds
    for i, backend in enumerate(there):
        share = (end - time.monotonic()) / (len(there) - i)
        if share <= 0:
            break
        limits = Limits.default(share + 120.0)
        try:
            jobs.run(
                deep.job,
                backend,
                device,
                path,
                share,
                limits=limits,
                on_message=lambda m, backend=backend: tell(backend, *m),
            )
        except ParedownError as e:
            tell(f"{backend} stopped: {e}", 0, 1)
    run_s = {b: device.overhead_s.get(f"{b}/run", 0.0) for b in there}
    learned = curves.learn(deep.rows(path), run_s)
    keep(learned, device, device_file)
    return learned


@contextmanager
def bar() -> Generator[Tell]:
    """A progress bar on stderr, one line a backend."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    lines: dict[str, TaskID] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in lines:
            lines[name] = shown.add_task(name, total=total)
        shown.update(lines[name], completed=done, total=total)

    with shown:
        yield tell
