"""Measure this machine as a device: once, in under a minute, cached by its fingerprint.

A machine that others keep busy cannot be calibrated: what is measured then is marked provisional
(chains run on one thread, since a preempted second thread stalls the first) and measured again by
the first call that finds the machine idle. A busy machine never throws away a good calibration.

Peaks and bandwidths come from the native probes (from torch where those are not built), shares of
the peak and costs of a call from chains of layers on each backend (`operators`).
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paredown import files, kernels
from paredown.device.device import Device, Level
from paredown.device.files import problems
from paredown.errors import ParedownError
from paredown.measure import fingerprint as machine
from paredown.measure import learning, levels
from paredown.result import Fingerprint

SCHEMA = 1
TOLERANCE = 0.2
"""A probe that differs by more than this share from the cached one: the machine has changed."""
BACKENDS = ("eager", "onnxruntime", "openvino")
SWEEP_TOP = 1 << 30
PEAK_S, SWEEP_S = 0.3, 0.12
BUSY = 0.2
"""Share of the cores kept busy by others from which a calibration is provisional."""
PROVISIONAL = "provisional"
Say = Callable[[str], None]


@lru_cache(maxsize=1)
def _known() -> Device:
    return _cached_or_measured()


def this(refresh: bool = False) -> Device:
    """Give this machine: from the cache while it is the same one, else measured now (under 60 s).

    ``refresh`` measures again whatever the cache holds. What is going on is said on stderr.
    """
    if refresh:
        _known.cache_clear()
        with _only_one():
            return _measure_and_keep(machine.fingerprint(), machine.others())
    return _known()


def deep() -> Device:
    """Give this machine with what its backends take on generated operators.

    Chains that an earlier call timed are not timed again. A machine that is calibrated again keeps
    what was learned, and the figures it was learned with, while versions of torch and the backends
    stay.
    """
    device = this()
    now = machine.fingerprint(probe=False)
    path = cached_at(now)
    with _only_one(), learning.bar() as tell:
        learning.learn(device, path, tell)
    _known.cache_clear()
    kept = read(path)
    return device if kept is None else kept[0]


def cached_at(print_: Fingerprint) -> Path:
    """The file that holds the calibration of a machine."""
    return machine.cache_dir() / f"device-{print_.key}.json"


def state() -> tuple[str, str]:
    """``(ok | missing | limited, detail)`` of the cached calibration; nothing is measured."""
    path = cached_at(machine.fingerprint(probe=False))
    kept = read(path)
    if kept is None:
        return "missing", f"not calibrated yet ({path} is absent or unreadable)"
    old = _changed_versions(kept[1])
    if old:
        return "limited", f"calibrated with other versions of {', '.join(old)}"
    if PROVISIONAL in kept[0].sources:
        return "limited", f"{path}: {kept[0].sources[PROVISIONAL]}"
    return "ok", f"{path}"


def _cached_or_measured() -> Device:
    with _only_one():
        now = machine.fingerprint(probe=False)
        kept = read(cached_at(now))
        busy = machine.others()
        if kept is not None and busy > BUSY and not _changed_versions(kept[1]):
            return kept[0]
        now = machine.fingerprint()
        why = _why_again(kept, now)
        if kept is not None and why is None:
            return kept[0]
        if kept is not None:
            _say(f"calibrating again: {why}")
        return _measure_and_keep(now, busy)


@contextmanager
def _only_one() -> Generator[None]:
    """One calibration at a time on this machine: two would measure each other."""
    folder = files.writable(machine.cache_dir())
    with open(folder / "calibrate.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _why_again(kept: tuple[Device, Fingerprint] | None, now: Fingerprint) -> str | None:
    """Why a cached calibration no longer stands, None when it does."""
    if kept is None:
        return "never calibrated"
    if changed := _changed_versions(kept[1]):
        return f"other versions of {', '.join(changed)}"
    if PROVISIONAL in kept[0].sources:
        return f"the last one is {PROVISIONAL}: {kept[0].sources[PROVISIONAL]}"
    off = _off(kept[1].probe, now.probe)
    for _ in range(2):
        if off is None:
            return None
        off = _off(kept[1].probe, machine.speed())
    return off


def _off(before: dict[str, float], now: dict[str, float]) -> str | None:
    """What differs by more than the tolerance, in words."""
    for name in sorted(before.keys() & now.keys()):
        ratio = now[name] / before[name]
        if abs(ratio - 1) > TOLERANCE:
            return f"the probe's {name} is {ratio:.2f}x of what it was"
    return None


def _changed_versions(before: Fingerprint) -> list[str]:
    now = machine.versions()
    names = sorted(now.keys() | before.versions.keys())
    return [n for n in names if now.get(n) != before.versions.get(n)]


def read(path: Path) -> tuple[Device, Fingerprint] | None:
    """A cached calibration; None when absent, damaged or of another schema: it is made again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            return None
        device = Device.model_validate(data["device"])
        if any(True for _ in problems(device)):
            return None
        return learning.read(path) or device, Fingerprint.model_validate(data["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _measure_and_keep(print_: Fingerprint, busy: float) -> Device:
    with _progress() as say:
        device = measure(say, busy=busy)
    if PROVISIONAL in device.sources:
        _say(f"this calibration is {PROVISIONAL}: {device.sources[PROVISIONAL]}")
    body = {
        "schema": SCHEMA,
        "device": device.model_dump(mode="json"),
        "fingerprint": print_.model_dump(mode="json"),
    }
    files.write_text(cached_at(print_), json.dumps(body, indent=1))
    return device


def measure(say: Say = lambda _: None, *, busy: float = 0.0) -> Device:
    """Measure this machine now; ``say`` is told what is done, ``busy`` is the share others use."""
    begin = time.perf_counter()
    on = machine.cores()
    say("peak rates")
    alone = busy <= BUSY
    peaks, elementwise, how = _peaks(on, say, PEAK_S if alone else 4 * PEAK_S)
    say("memory bandwidth")
    memory, curve = _levels(on, say)
    threads = len(on) if alone else 1
    each = {dtype: rate * threads / len(on) for dtype, rate in peaks.items()}
    efficiency, overhead, notes = _backends(each, threads, say)
    if not alone:
        notes[PROVISIONAL] = f"others kept {busy:.0%} of the cores busy"
    return Device(
        name="this",
        title=f"{machine.fingerprint(probe=False).cpu}, {len(on)} cores",
        threads=len(on),
        how="measured",
        isa=tuple(kernels.native().levels()) if kernels.native() else (),  # type: ignore[union-attr]
        peak_macs_s=peaks,
        elementwise_s=elementwise,
        levels=memory,
        overhead_s=overhead,
        efficiency=efficiency,
        sources={
            "peak_macs_s": how,
            "levels": f"read sweep: {curve}",
            "calibration": f"{time.perf_counter() - begin:.0f} s",
            **notes,
        },
    )


def _peaks(on: list[int], say: Say, seconds: float) -> tuple[dict[str, float], float, str]:
    native = kernels.native()
    if native is None:
        return _peaks_of_torch(len(on), say, seconds)
    isa = kernels.isa()
    peaks: dict[str, float] = {}
    for dtype in ("float64", "float32", "bfloat16", "float16", "int8"):
        say(f"peak {dtype}")
        rate = native.peak(dtype, isa, on, seconds)
        if rate is not None:
            peaks[dtype] = rate["best"]
    elementwise = native.peak("elementwise", isa, on, seconds)["best"]
    return peaks, elementwise, f"register-blocked native loops ({isa}), fastest round"


def _peaks_of_torch(threads: int, say: Say, seconds: float) -> tuple[dict[str, float], float, str]:
    """Without native probes: rates of torch's matrix product, a lower bound of the peak."""
    import torch

    n, before = 1024, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        peaks: dict[str, float] = {}
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            say(f"peak {name}")
            a = torch.ones(n, n, dtype=dtype)
            peaks[name] = n**3 / machine.best_time(lambda a=a: a @ a, seconds)
        x = torch.ones(8192)
        elementwise = x.numel() / machine.best_time(lambda: x.add_(1.0), seconds)
    finally:
        torch.set_num_threads(before)
    return peaks, elementwise, f"torch matrix products: {kernels.why_missing()}"


def _levels(on: list[int], say: Say) -> tuple[tuple[Level, ...], str]:
    top = min(max(4 * machine.last_level_bytes(), 256 << 20), SWEEP_TOP)
    memory_bytes = machine.fingerprint(probe=False).memory_bytes
    top = min(top, memory_bytes // 8)
    sets = levels.sizes(top)
    rates: list[float] = []
    for size in sets:
        say(f"read {size / (1 << 20):.3g} MiB")
        rates.append(_rate("read", size, on))
    steps = levels.knees(sets, rates)
    names = levels.name_steps(steps, machine.shared_caches())
    made: list[Level] = []
    low = sets[0]
    for i, (step, name) in enumerate(zip(steps, names, strict=True)):
        last = i == len(steps) - 1
        inside = top if last else int((low * step.capacity_bytes) ** 0.5)
        made.append(
            Level(
                name=name,
                capacity_bytes=max(memory_bytes, step.capacity_bytes)
                if last
                else step.capacity_bytes,
                read_bytes_s=step.bytes_s,
                write_bytes_s=_rate("write", inside, on),
            )
        )
        low = step.capacity_bytes
    curve = ", ".join(f"{s >> 10} KiB {r / 1e9:.0f}" for s, r in zip(sets, rates, strict=True))
    return tuple(made), f"{curve} GB/s"


def _rate(kind: str, size: int, on: list[int]) -> float:
    native = kernels.native()
    if native is not None:
        return native.bandwidth(kind, size, kernels.isa(), on, SWEEP_S)["best"]
    import numpy as np

    words = np.ones(max(size // 8, 1), dtype=np.uint64)
    run = words.sum if kind == "read" else lambda: words.fill(1)
    return words.nbytes / machine.best_time(run, SWEEP_S)


def _backends(
    peaks: dict[str, float], threads: int, say: Say
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Shares of the peak, costs of a call and remarks, by backend; each in a child of its own."""
    from paredown.measure import operators
    from paredown.measure.child import Jobs, Limits

    efficiency: dict[str, float] = {}
    overhead: dict[str, float] = {}
    notes: dict[str, str] = {}
    say("starting the backends")
    found = Jobs().run_in_turns(
        operators.measure,
        [(name, peaks, threads) for name in BACKENDS],
        Limits.default(seconds=180),
        _teller(say),
    )
    for name, got in zip(BACKENDS, found, strict=True):
        if isinstance(got, ParedownError):
            notes[f"efficiency/{name}"] = f"not measured: {got}"
            continue
        efficiency |= {f"{name}/{kind}": share for kind, share in got.efficiency.items()}
        if got.overhead_s is not None:
            overhead[name] = got.overhead_s
        if got.run_s is not None:
            overhead[f"{name}/run"] = got.run_s
        for what, why in got.failed.items():
            notes["/".join(filter(None, ("efficiency", name, what)))] = f"not measured: {why}"
    return efficiency, overhead, notes


def _teller(say: Say) -> Callable[[Any], None]:
    return lambda message: say(str(message))


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(f"paredown: {text}", highlight=False)


@contextmanager
def _progress() -> Generator[Say]:
    """A line on stderr that says what is being measured, for as long as it takes."""
    from rich.console import Console

    with Console(stderr=True).status("calibrating this machine") as status:
        yield lambda text: status.update(f"calibrating this machine: {text}")
