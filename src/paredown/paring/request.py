"""What the user asked of `down`, `plan` or `check`, validated before any compute is spent."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paredown import budget as budgets
from paredown import registry, runtime
from paredown.budget import Budget
from paredown.device.device import Device
from paredown.errors import BudgetError, InputError, UnknownName
from paredown.files import writable
from paredown.measure.fingerprint import threads_allowed
from paredown.search.trial import Source
from paredown.workload import Evaluate, TrainingData, Workload

EFFORT = "3m"
PREDICTABLE = frozenset({"latency", "throughput", "memory", "energy", "traffic"})
"""What the cost model predicts; everything else is counted, or judged through a real executable."""
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Request:
    """One validated request. ``workload`` is the target as resolved in this process."""

    workload: Workload
    source: Source
    target: str
    budget: Budget
    device: Device
    here: bool
    """Whether the device is this machine: only then is anything about running time measured."""
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

    @property
    def own_backend(self) -> str:
        """The backend of the baseline: the original as its author runs it."""
        return runtime.own_backend(self.workload)

    @property
    def predicted(self) -> frozenset[str]:
        """Metrics whose figures come from the cost model: all that another device would have to be
        timed for, and here those that cannot be measured. None unless predictions are accepted.
        """
        known = measured_here(None if self.here else self.device)
        return PREDICTABLE - known if self.accept_predicted else frozenset()


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
    run: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    seed: int = 0,
    gated: bool = True,
) -> Request:
    """Check all that the user said, the cheapest first; only then may this machine be calibrated.

    Runs the model once on its example inputs, to prove that it runs. Raises `ParedownError`.
    """
    from paredown import device as devices
    from paredown import targets

    wanted = budgets.parse([to] if isinstance(to, str) else to)
    for name in (*only, *without):
        registry.technique(name)
    seconds = parse_effort(effort)
    if accept not in (None, "predicted"):
        raise InputError(f"--accept takes 'predicted', not {accept!r}")
    accept_predicted = accept == "predicted"
    count = threads_allowed(threads)
    found = _backends(backend)
    # Calibrating this machine takes a minute: it waits until nothing is left to refuse.
    other = None if device == "this" else devices.load(device)
    if other is not None and other.name == "this":
        raise InputError(f"--device {device}: the name 'this' is kept for the machine at hand")
    wanted.check_machine(
        unmeasurable(),
        device=device,
        accept_predicted=accept_predicted,
        unpredictable=unpredictable(other),
    )
    judges = {
        "evaluate": evaluate,
        "verify": verify,
        "calibration": calibration,
        "training": training,
        "scale": scale,
    }
    guessed = sorted({c.metric for c in wanted.costs} & (PREDICTABLE - measured_here(other)))
    if strict and guessed:
        raise InputError(
            f"--strict demands proven constraints, and {', '.join(guessed)} would be predicted: "
            "a prediction is never proven"
        )
    if isinstance(target, str):
        given = [name for name, value in judges.items() if value is not None]
        if given or inputs is not None:
            extra = ", ".join([*given, *(["inputs"] if inputs is not None else [])])
            if targets.kind_of(target) == "onnx":
                raise InputError(
                    f"{target} names a file alone: give {extra} with it, as in "
                    f"down(onnx_workload({target!r}, inputs, evaluate=f), to=[...])"
                )
            raise InputError(
                f"{target} is a reference and says itself how it is run and judged: "
                f"leave {extra} out"
            )
        target = targets.run_as(target, run=run, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        workload = _from_reference(target, wanted, random_weights)
        source = Source(target=target, random_weights=random_weights)
        text = target
    else:
        if run or prompt_tokens or new_tokens:
            raise InputError("a model from Python says itself how it is run: Workload(run=...)")
        workload = _from_python(target, inputs)
        workload = replace(workload, **{k: v for k, v in judges.items() if v is not None})
        source = Source(workload=workload)
        text = workload.name
    wanted = wanted.check_workload(workload, random_weights=random_weights)
    folder = Path(out) if out is not None else default_folder(text)
    if resume and not (folder / "search.sqlite").exists():
        raise InputError(f"nothing to resume in {folder}: it holds no search.sqlite")
    folder = writable(folder, keep=False)
    targets.validate(workload)
    found = _that_run(found, workload, asked=backend)
    return Request(
        workload=workload,
        source=source,
        target=text,
        budget=wanted.gated(workload, random_weights=random_weights) if gated else wanted,
        device=other if other is not None else devices.load("this"),
        here=other is None,
        threads=count,
        backends=found,
        only=tuple(only),
        without=tuple(without),
        keep=tuple(keep),
        effort_s=seconds,
        out=folder,
        resume=resume,
        strict=strict,
        accept_predicted=accept_predicted,
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
        out["energy"] = why.removeprefix("energy cannot be measured here: ")
    return out


def measured_here(device: Device | None) -> frozenset[str]:
    """Costs of running that can be measured: none on a device that is not this machine (None)."""
    return PREDICTABLE - unmeasurable().keys() if device is None else frozenset()


def unpredictable(device: Device | None) -> dict[str, str]:
    """Metrics that cannot be predicted on a device, and why; None: this machine, uncalibrated."""
    if device is not None and device.energy_j_per_mac and device.memory.energy_j_per_byte:
        return {}
    # A calibration measures rates, not joules.
    who = device.name if device is not None else "the calibration of this machine"
    return {"energy": f"{who} states no energy per MAC and per byte of memory to predict it from"}


def _backends(asked: str | None) -> dict[str, str | None]:
    names = runtime.names() if asked is None else [asked]
    found = {name: runtime.backend(name).available() for name in names}
    if asked is not None and found[asked] is not None:
        raise InputError(f"--backend {asked}: {found[asked]}")
    return found


def _that_run(
    found: dict[str, str | None], workload: Workload, *, asked: str | None
) -> dict[str, str | None]:
    """The backends again, those that cannot run the original at all with their reason."""
    for name in [n for n, why in found.items() if why is None]:
        reasons = runtime.backend(name).supports(workload, None)
        if reasons and asked is not None:
            raise InputError(f"--backend {asked}: {reasons[0]}")
        found[name] = reasons[0] if reasons else None
    return found


def _from_reference(target: str, wanted: Budget, random_weights: bool) -> Workload:
    from paredown import artefact, targets

    workload = targets.resolve(target, random_weights=random_weights)
    if wanted.quality and targets.kind_of(target) == "artefact":
        # A folder holds no examples: its source judges it.
        own = artefact.source_of(target)
        judges = ("evaluate", "verify", "calibration", "scale")
        workload = replace(workload, **{k: getattr(own, k) for k in judges})
    return workload


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


__all__ = ["BudgetError", "Request", "UnknownName", "make", "parse_effort"]
