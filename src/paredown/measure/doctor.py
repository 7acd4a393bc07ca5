"""What this machine offers to measuring and what it lacks: rows of `pare doctor`. No torch here."""

from __future__ import annotations

import shutil

from paredown import kernels
from paredown.errors import InputError
from paredown.measure import calibrate, energy
from paredown.measure import fingerprint as machine
from paredown.result import DoctorRow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def rows() -> list[DoctorRow]:
    """One row per thing checked, in the order they matter; nothing is timed, torch not imported."""
    return [
        _processor(),
        _native(),
        _compiler(),
        _isa(),
        _amx(),
        _interposer(),
        _calibration(),
        _cores(),
        _energy(),
        _gpu(),
        _browser(),
    ]


def _processor() -> DoctorRow:
    here = machine.fingerprint(probe=False)
    detail = f"{here.cpu}, {here.memory_bytes / (1 << 30):.1f} GiB"
    return DoctorRow(name="processor", state="ok", detail=detail)


def _native() -> DoctorRow:
    why = kernels.why_missing()
    if why is None:
        return DoctorRow(name="native probes", state="ok", detail="built and loaded")
    return DoctorRow(
        name="native probes",
        state="missing",
        detail=f"{why.partition(':')[0]}; calibration falls back to torch's rates",
        fix=why.partition(": ")[2] or None,
    )


def _compiler() -> DoctorRow:
    for name in ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            return DoctorRow(name="C++ compiler", state="ok", detail=path)
    return DoctorRow(
        name="C++ compiler",
        state="missing",
        detail="needed by the inductor backend and to build the native probes",
        fix="apt-get install g++",
    )


def _isa() -> DoctorRow:
    native = kernels.native()
    if native is None:
        return DoctorRow(name="instruction sets", state="limited", detail="told by native probes")
    try:
        used = kernels.isa()
    except InputError as e:
        return DoctorRow(
            name="instruction sets", state="limited", detail=str(e), fix="unset PAREDOWN_ISA"
        )
    return DoctorRow(
        name="instruction sets", state="ok", detail=f"{', '.join(native.levels())}; using {used}"
    )


def _amx() -> DoctorRow:
    native = kernels.native()
    if native is not None and "amx_tile" in native.features():
        return DoctorRow(name="AMX", state="ok", detail="bf16 and int8 tiles, permission granted")
    if "amx_tile" in machine.fingerprint(probe=False).isa:
        detail = "the processor has tiles, but they are not usable here"
        return DoctorRow(name="AMX", state="limited", detail=detail)
    return DoctorRow(name="AMX", state="limited", detail="this processor has no tiles")


def _interposer() -> DoctorRow:
    if (path := kernels.mallocs_library()) is not None:
        return DoctorRow(name="malloc interposer", state="ok", detail=str(path))
    return DoctorRow(
        name="malloc interposer",
        state="missing",
        detail="without it `memory` of onnxruntime and openvino is unavailable",
        fix="install g++ and reinstall paredown (Linux with glibc)",
    )


def _browser() -> DoctorRow:
    for name in BROWSERS:
        if path := shutil.which(name):
            if shutil.which("chromedriver") is None:
                return DoctorRow(
                    name="chromium",
                    state="limited",
                    detail=f"{path}, without chromedriver",
                    fix="apt-get install chromium-driver",
                )
            return DoctorRow(name="chromium", state="ok", detail=path)
    return DoctorRow(
        name="chromium",
        state="limited",
        detail="optional: only the tests of report pages open one",
        fix="apt-get install chromium chromium-driver",
    )


def _calibration() -> DoctorRow:
    state, detail = calibrate.state()
    assert state in ("ok", "missing", "limited")
    fix = None if state == "ok" else "pare calibrate"
    return DoctorRow(name="calibration", state=state, detail=detail, fix=fix)


def _energy() -> DoctorRow:
    why = energy.why_unavailable()
    if why is None:
        names = ", ".join(c.name for c in energy.available())
        return DoctorRow(name="energy counters", state="ok", detail=names)
    return DoctorRow(name="energy counters", state="limited", detail=why)


def _gpu() -> DoctorRow:
    name = machine.fingerprint(probe=False).gpu
    if name:
        return DoctorRow(name="GPU", state="ok", detail=name)
    return DoctorRow(name="GPU", state="limited", detail="optional: no NVIDIA driver is loaded")


def _cores() -> DoctorRow:
    busy = machine.others()
    detail = f"{len(machine.cores())} allowed, {busy:.0%} busy with other work"
    fix = "stop other work before timing anything" if busy > calibrate.BUSY else None
    return DoctorRow(name="cores", state="limited" if fix else "ok", detail=detail, fix=fix)
