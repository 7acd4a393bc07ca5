"""What the user asked of `down`, `plan` or `check`, validated before any compute is spent."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from paredown import budget as budgets
from paredown import registry, runtime
from paredown.budget import Budget
from paredown.device.device import Device
from paredown.errors import BudgetError, InputError, UnknownName
from paredown.files import writable
from paredown.search.trial import Source
from paredown.workload import Evaluate, TrainingData, Workload

EFFORT = "3m"
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Request:
    """One validated request. ``workload`` is the target as resolved in this process."""

    workload: Workload
    source: Source
    target: str
    budget: Budget
    device: Device
    threads: int
    backends: dict[str, str | None]
    """Backend -> None when it may be used, else why not."""
    only: tuple[str, ...]
    without: tuple[str, ...]
    keep: tuple[str, ...]
    effort_s: float
    out: Path
    resume: bool
    strict: bool
    accept_predicted: bool
    seed: int

    @property
    def usable(self) -> list[str]:
        """The backends that may be used."""
        return [b for b, why in self.backends.items() if why is None]


def make(
    target: str | nn.Module | Workload,
    inputs: Any = None,
    *,
    to: Sequence[str] | str,
    evaluate: Evaluate | None = None,
    verify: Evaluate | None = None,
    calibration: Sequence[Any] | None = None,
    training: TrainingData | None = None,
    scale: float | None = None,
    device: str = "this",
    backend: str | None = None,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    keep: Sequence[str] = (),
    effort: str | float = EFFORT,
    threads: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    strict: bool = False,
    accept: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> Request:
    """Check everything that can be checked without running the model; raises `ParedownError`."""
    from paredown import device as devices
    from paredown import targets
    from paredown.measure import calibrate

    wanted = budgets.parse([to] if isinstance(to, str) else to)
    for name in (*only, *without):
        registry.technique(name)
    seconds = parse_effort(effort)
    if accept not in (None, "predicted"):
        raise InputError(f"--accept takes 'predicted', not {accept!r}")
    cores = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(f"--threads {threads}: this process may use 1 to {cores}")
    found = _backends(backend)
    if isinstance(target, str):
        workload = targets.resolve(target, random_weights=random_weights)
        source = Source(target=target, random_weights=random_weights)
        text = target
    else:
        workload = _from_python(target, inputs)
        workload = _judged_by(workload, evaluate, verify, calibration, training, scale)
        source = Source(workload=workload)
        text = workload.name
    wanted = wanted.check_workload(workload, random_weights=random_weights)
    machine = calibrate.this() if device == "this" else devices.load(device)
    wanted.check_machine(unmeasurable(), device=device, accept_predicted=accept == "predicted")
    targets.validate(workload)
    folder = Path(out) if out is not None else default_folder(text)
    if resume and not (folder / "search.sqlite").exists():
        raise InputError(f"nothing to resume in {folder}: it holds no search.sqlite")
    return Request(
        workload=workload,
        source=source,
        target=text,
        budget=wanted.gated(workload, random_weights=random_weights),
        device=machine,
        threads=threads or cores,
        backends=found,
        only=tuple(only),
        without=tuple(without),
        keep=tuple(keep),
        effort_s=seconds,
        out=writable(folder, keep=False),
        resume=resume,
        strict=strict,
        accept_predicted=accept == "predicted",
        seed=seed,
    )


def parse_effort(effort: str | float) -> float:
    """Seconds of an effort such as ``90``, ``90s``, ``3m`` or ``1.5h``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", str(effort))
    if match is None:
        raise InputError(f"effort {effort!r} is not a time: write 90s, 3m or 1.5h")
    seconds = float(match[1]) * _UNIT_S[match[2] or ""]
    if seconds <= 0:
        raise InputError(f"effort {effort!r} leaves no time to try anything")
    return seconds


def default_folder(target: str) -> Path:
    """``./pared/<target>-<utc>``."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(target.partition("?")[0]).stem).strip("-")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return Path("pared") / f"{stem or 'model'}-{now}"


def unmeasurable() -> dict[str, str]:
    """Metrics that this machine cannot measure, and why."""
    from paredown.measure import energy

    out: dict[str, str] = {"traffic": "hardware counters of memory traffic cannot be read here"}
    why = energy.why_unavailable()
    if why is not None:
        out["energy"] = why
    return out


def _backends(asked: str | None) -> dict[str, str | None]:
    names = runtime.names() if asked is None else [asked]
    found = {name: runtime.backend(name).available() for name in names}
    if asked is not None and found[asked] is not None:
        raise InputError(f"--backend {asked}: {found[asked]}")
    return found


def _from_python(target: nn.Module | Workload, inputs: Any) -> Workload:
    if isinstance(target, Workload):
        if inputs is not None:
            raise InputError("a Workload already holds its inputs: do not give `inputs` as well")
        return target
    if not callable(getattr(target, "parameters", None)):
        raise InputError(
            f"a target is a reference, an nn.Module or a Workload, not {type(target).__name__}"
        )
    if inputs is None:
        raise InputError("give example inputs: down(model, inputs, to=[...])")
    from paredown.workload import as_call

    args, kwargs = as_call(inputs)
    return Workload(target.eval(), args, kwargs, name=type(target).__name__)


def _judged_by(
    workload: Workload,
    evaluate: Evaluate | None,
    verify: Evaluate | None,
    calibration: Sequence[Any] | None,
    training: TrainingData | None,
    scale: float | None,
) -> Workload:
    from dataclasses import replace

    given = {
        "evaluate": evaluate,
        "verify": verify,
        "calibration": calibration,
        "training": training,
        "scale": scale,
    }
    return replace(workload, **{k: v for k, v in given.items() if v is not None})


__all__ = ["BudgetError", "Request", "UnknownName", "make", "parse_effort"]
