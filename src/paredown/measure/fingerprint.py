"""What identifies a machine for a measurement (CONTRACTS): what it has, and how fast it is.

Torch and the backends are not imported: their versions come from the installed packages' metadata.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from paredown import kernels
from paredown.errors import InputError
from paredown.result import Fingerprint

__all__ = [
    "best_time",
    "cache_dir",
    "caches",
    "cores",
    "fingerprint",
    "last_level_bytes",
    "others",
    "shared_caches",
    "speed",
    "threads_allowed",
    "versions",
]

PACKAGES = ("torch", "openvino", "onnxruntime", "onnx", "transformers", "nncf", "numpy")

# Flags of /proc/cpuinfo that decide which kernels run; the rest changes with the kernel's mood.
FLAGS = (
    frozenset(
        ["avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"]
    )
    | frozenset(
        [
            "avx512_vnni",
            "avx512_bf16",
            "avx512_fp16",
            "avx512vbmi",
            "amx_tile",
            "amx_bf16",
            "amx_int8",
        ]
    )
    | frozenset(["amx_fp16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"])
)

SYSFS_CACHES = Path("/sys/devices/system/cpu")
NVIDIA = Path("/proc/driver/nvidia/gpus")


def fingerprint(probe: bool = True) -> Fingerprint:
    """Identify this machine: processor, flags, caches, allowed cores, memory, kernel, versions.

    With ``probe`` it is also timed for about one second (:func:`speed`); a caller that measures
    something itself leaves that out.
    """
    return Fingerprint(
        cpu=_cpu_name(),
        isa=sorted(flags()),
        caches=caches(),
        cores=len(cores()),
        memory_bytes=_memory_bytes(),
        kernel=platform.release(),
        versions=versions(),
        probe=speed() if probe else {},
        gpu=_gpu(),
    )


def cache_dir() -> Path:
    """Where calibrations are kept: ``$PAREDOWN_CACHE``, else ``~/.cache/paredown``."""
    named = os.environ.get("PAREDOWN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paredown"


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def threads_allowed(asked: int | None) -> int:
    """``asked`` threads, all allowed cores where None is. Raises ``InputError`` for too many."""
    count = len(cores())
    if asked is not None and not 1 <= asked <= count:
        raise InputError(f"--threads {asked}: this process may use 1 to {count}")
    return asked or count


def speed(seconds: float = 1.0) -> dict[str, float]:
    """``peak_macs_s`` (float32) and ``read_bytes_s`` (256 MiB) over all allowed cores.

    Each is the fastest of many short rounds, so that a busy neighbour costs time, not the figure.
    """
    native = kernels.native()
    if native is None:
        return _speed_of_numpy(seconds)
    isa, on = kernels.isa(), cores()
    peak = native.peak("float32", isa, on, seconds * 0.4)
    read = native.bandwidth("read", 256 << 20, isa, on, seconds * 0.4)
    return {"peak_macs_s": peak["best"], "read_bytes_s": read["best"]}


def others(seconds: float = 0.25) -> float:
    """Share of the allowed cores that others (or a hypervisor) keep busy, found by waiting.

    0.0 where the system does not tell.
    """
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    total = sum(after) - sum(before)
    idle = after[0] - before[0]
    return max(0.0, 1 - idle / total) if total > 0 else 0.0


def _ticks() -> tuple[int, int]:
    """Idle and busy clock ticks of the allowed cores since boot (busy includes stolen time)."""
    path = Path("/proc/stat")
    names = {f"cpu{core}" for core in cores()}
    idle = busy = 0
    for line in path.read_text().splitlines() if path.exists() else []:
        name, *fields = line.split()
        if name in names:
            numbers = [int(f) for f in fields[:8]]  # guest time is part of user time
            idle += numbers[3] + numbers[4]
            busy += sum(numbers) - numbers[3] - numbers[4]
    return idle, busy


def _speed_of_numpy(seconds: float) -> dict[str, float]:
    import numpy as np

    n = 512
    a = np.full((n, n), 0.5, dtype=np.float32)
    big = np.ones(32 << 20, dtype=np.uint64)  # 256 MiB
    return {
        "peak_macs_s": n**3 / best_time(lambda: a @ a, seconds / 2),
        "read_bytes_s": big.nbytes / best_time(big.sum, seconds / 2),
    }


def best_time(run: Callable[[], object], seconds: float) -> float:
    """The fastest of as many calls as fit into ``seconds`` (at least three), in s."""
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of python, torch and the backends that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def caches() -> dict[str, int]:
    """Data caches of one core, bytes by name (``L1``, ``L2``, ``L3``); empty when nobody tells."""
    first = SYSFS_CACHES / f"cpu{cores()[0]}" / "cache"
    found: dict[str, int] = {}
    for index in sorted(first.glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            name = f"L{(index / 'level').read_text().strip()}"
            found[name] = _bytes((index / "size").read_text().strip())
    return found


def last_level_bytes() -> int:
    """Capacity of the caches that all allowed cores have together, the largest level."""
    return max(shared_caches().values(), default=32 << 20)


def shared_caches() -> dict[str, int]:
    """Like :func:`caches`, but what all allowed cores hold together."""
    allowed = set(cores())
    total: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for core in sorted(allowed):
        for index in sorted((SYSFS_CACHES / f"cpu{core}" / "cache").glob("index*")):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            name = f"L{(index / 'level').read_text().strip()}"
            sharers = (index / "shared_cpu_list").read_text().strip()
            if (name, sharers) not in seen:
                seen.add((name, sharers))
                total[name] = total.get(name, 0) + _bytes((index / "size").read_text().strip())
    return total


def _bytes(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def _cpuinfo(*keys: str) -> str:
    """The first value of one of ``keys`` in /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _cpu_name() -> str:
    name = _cpuinfo("model name", "Model") or platform.processor() or platform.machine()
    numbers = [_cpuinfo(k) for k in ("cpu family", "model", "stepping")]
    # A hypervisor may hide the model's name; the numbers tell processors apart all the same.
    return (
        f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"
        if all(numbers)
        else name
    )


def flags() -> frozenset[str]:
    """Instruction-set flags of this processor that matter here, as the kernel names them."""
    return FLAGS & frozenset(_cpuinfo("flags", "Features").split())


def _memory_bytes() -> int:
    """Memory that this process may use, in whole 256 MiB: kernels keep a varying little back."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    step = 256 << 20
    return max(total // step, 1) * step


def _gpu() -> str | None:
    models = [
        line.partition(":")[2].strip()
        for path in sorted(NVIDIA.glob("*/information"))
        for line in path.read_text().splitlines()
        if line.startswith("Model")
    ]
    return " + ".join(models) or None
