"""Energy of a run: over windows of seconds with idle subtracted, or said to be unavailable.

Processor energy is read from RAPL (Linux powercap), a GPU's from NVML. Carbon follows as energy
times the intensity of the grid (the accounting of the catalogue's `amp-carbon`).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paredown.errors import InputError
from paredown.figure import Figure, unavailable

POWERCAP = Path("/sys/class/powercap")
WINDOW_S = 2.0
WINDOWS = 3

GRID_G_PER_KWH: dict[str, float] = {
    "world": 481.0,
    "australia": 549.0,
    "austria": 111.0,
    "belgium": 138.0,
    "brazil": 98.0,
    "canada": 170.0,
    "china": 582.0,
    "denmark": 152.0,
    "finland": 79.0,
    "france": 56.0,
    "germany": 381.0,
    "india": 713.0,
    "norway": 30.0,
}
"""Carbon intensity of electricity generated in 2023, g CO2e per kWh, life cycle.

Source: Ember, as published in 2024 (through Our World in Data and Statista). Yearly means: the hour
and the place differ.
"""


@dataclass(frozen=True)
class Counter:
    """One energy counter: joules since some start, modulo ``wraps_j``."""

    name: str
    read: Callable[[], float]
    wraps_j: float | None = None

    def since(self, before: float) -> float:
        """Joules since an earlier reading; a counter that wrapped once is mended."""
        spent = self.read() - before
        return spent + self.wraps_j if spent < 0 and self.wraps_j is not None else spent


def measure(run: Callable[[], Any], *, counters: Sequence[Counter] | None = None) -> Figure:
    """Joules per run above idle: windows of at least two seconds of runs, less the idle power.

    ``unavailable`` with the reason where no counter can be read. The spread is that of the windows.
    """
    found = list(available()) if counters is None else list(counters)
    if not found:
        return unavailable("J", why_unavailable() or "no counter was given")
    run()
    idle = _idle_power(found)
    per_run: list[float] = []
    for _ in range(WINDOWS):
        joules, seconds, runs = _window(found, run)
        per_run.append((joules - idle * seconds) / runs)
    return Figure(
        value=float(np.median(per_run)),
        unit="J",
        how="measured",
        spread=(min(per_run), max(per_run)),
        n=len(per_run),
    )


def _idle_power(counters: Sequence[Counter]) -> float:
    """Watts while this process sleeps."""
    before = [c.read() for c in counters]
    start = time.perf_counter()
    time.sleep(WINDOW_S)
    seconds = time.perf_counter() - start
    return sum(c.since(b) for c, b in zip(counters, before, strict=True)) / seconds


def _window(counters: Sequence[Counter], run: Callable[[], Any]) -> tuple[float, float, int]:
    before = [c.read() for c in counters]
    start, runs = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < WINDOW_S or runs == 0:
        run()
        runs += 1
    seconds = time.perf_counter() - start
    return sum(c.since(b) for c, b in zip(counters, before, strict=True)), seconds, runs


def available() -> list[Counter]:
    """Counters that can be read here: RAPL packages, and NVML devices when its package is there."""
    return [*_rapl(), *_nvml()]


def why_unavailable() -> str | None:
    """Why no energy counter can be read, in one line; None when one can."""
    if available():
        return None
    if not POWERCAP.is_dir():
        rapl = "no RAPL counters (a virtual machine, or a kernel without powercap)"
    elif not list(POWERCAP.glob("intel-rapl:*/energy_uj")):
        rapl = f"no RAPL package under {POWERCAP}"
    else:
        rapl = f"{POWERCAP}/intel-rapl:*/energy_uj is not readable (it needs root, or chmod a+r)"
    return f"energy cannot be measured here: {rapl}; no NVIDIA GPU counter"


def _rapl() -> list[Counter]:
    counters: list[Counter] = []
    # Packages only: their sub-domains (`intel-rapl:0:1`) are contained in them.
    for path in sorted(POWERCAP.glob("intel-rapl:*/energy_uj")):
        if path.parent.name.count(":") != 1:
            continue
        try:
            float(path.read_text())
            top = float((path.parent / "max_energy_range_uj").read_text()) * 1e-6
        except (OSError, ValueError):
            continue
        counters.append(Counter(path.parent.name, lambda p=path: float(p.read_text()) * 1e-6, top))
    return counters


def _nvml() -> list[Counter]:
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    read = pynvml.nvmlDeviceGetTotalEnergyConsumption
    return [
        Counter(f"nvml:{i}", lambda h=handle: read(h) * 1e-3) for i, handle in enumerate(handles)
    ]


def integrate(times: Sequence[float], watts: Sequence[float]) -> float:
    """Joules under a sampled power curve: trapezoids between samples, exact for straight lines.

    ``times`` in s, strictly increasing, at least two; ``watts`` of the same length, not negative.
    """
    t, p = np.asarray(times, dtype=float), np.asarray(watts, dtype=float)
    if t.shape != p.shape or t.ndim != 1 or t.size < 2:
        raise InputError(
            f"integrate needs two series of one length of at least 2, got {t.shape} and {p.shape}"
        )
    if not (np.isfinite(t).all() and np.isfinite(p).all()):
        raise InputError("integrate needs finite times and powers")
    if (np.diff(t) <= 0).any():
        raise InputError("times must strictly increase")
    if (p < 0).any():
        raise InputError("power must not be negative")
    return float(np.trapezoid(p, t))


def carbon_g(joules: float, grid: str = "world", *, pue: float = 1.0) -> float:
    """Grams of CO2e for an energy on a grid; ``pue`` is the data centre's total over its own share.

    Raises ``InputError`` for an unknown grid (see :data:`GRID_G_PER_KWH`) or a ``pue`` below 1.
    """
    if grid not in GRID_G_PER_KWH:
        raise InputError(f"unknown grid {grid!r}; known: {', '.join(sorted(GRID_G_PER_KWH))}")
    if pue < 1:
        raise InputError(f"pue is at least 1, got {pue}")
    return joules / 3.6e6 * GRID_G_PER_KWH[grid] * pue
