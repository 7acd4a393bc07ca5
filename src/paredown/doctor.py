"""What `pare doctor` looks at: each check is a row, and none of them may fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata

from paredown.result import DoctorRow

CORE = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "optuna", "pydantic", "jinja2")
EXTRAS = {
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "llm": ("transformers",),
    "images": ("pillow",),
    "ray": ("ray",),
}


def rows() -> list[DoctorRow]:
    """Every check, in order."""
    out: list[DoctorRow] = []
    for check in CHECKS:
        try:
            out += check()
        except Exception as e:
            # A broken installation is what a doctor is for: the check's own failure is its finding.
            name = check.__name__.strip("_")
            out.append(DoctorRow(name=name, state="missing", detail=f"{type(e).__name__}: {e}"))
    return out


def _python() -> Iterator[DoctorRow]:
    said = sys.version.split()[0]
    yield DoctorRow(name="python", state="ok", detail=said)


def _core() -> Iterator[DoctorRow]:
    for name in CORE:
        version = _version(name)
        if version:
            yield DoctorRow(name=name, state="ok", detail=version)
        else:
            fix = "pip install paredown -c constraints.txt"
            yield DoctorRow(name=name, state="missing", detail="not installed", fix=fix)


def _extras() -> Iterator[DoctorRow]:
    for extra, packages in EXTRAS.items():
        lacking = [p for p in packages if not _version(p)]
        have = ", ".join(f"{p} {_version(p)}" for p in packages if p not in lacking)
        if not lacking:
            yield DoctorRow(name=f"[{extra}]", state="ok", detail=have)
            continue
        yield DoctorRow(
            name=f"[{extra}]",
            state="missing",
            detail=f"without {', '.join(lacking)}" + (f"; has {have}" if have else ""),
            fix=f"pip install 'paredown[{extra}]' -c constraints.txt",
        )


def _backends() -> Iterator[DoctorRow]:
    from paredown import runtime

    for name in runtime.names():
        why = runtime.backend(name).available()
        state = "ok" if why is None else "missing"
        yield DoctorRow(name=f"backend {name}", state=state, detail=why or "can be used")


def _machine() -> Iterator[DoctorRow]:
    from paredown.measure import doctor

    yield from doctor.rows()


def _cache() -> Iterator[DoctorRow]:
    from paredown.measure.fingerprint import cache_dir

    folder = cache_dir()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(there, os.W_OK):
        yield DoctorRow(name="cache", state="ok", detail=str(folder))
    else:
        fix = "set PAREDOWN_CACHE to a folder that can be written"
        yield DoctorRow(name="cache", state="limited", detail=f"{folder} is read-only", fix=fix)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS = (
    _python,
    _core,
    _extras,
    _backends,
    _machine,
    _cache,
)
