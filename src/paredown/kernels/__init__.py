"""Native probes, torch-free: found and chosen here, written in ``cpp/``, optional everywhere.

One translation unit per instruction set stands behind a function table (``cpp/table.hpp``). The
level used is the best one usable here; ``PAREDOWN_ISA`` names another, read at each call.
"""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from paredown.errors import InputError

__all__ = ["LEVELS", "isa", "mallocs_library", "native", "why_missing"]

LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "amx")
"""Instruction-set levels, weakest first."""


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("paredown.kernels._native"), None
    except ModuleNotFoundError:
        return None, (
            "the native probes were not built (no C++ compiler at install time): install g++ and "
            "run pip install --force-reinstall --no-deps paredown"
        )
    except ImportError as e:
        return None, f"the native probes do not load: {e}"


def native() -> ModuleType | None:
    """The compiled module, None where it was not built (see :func:`why_missing`)."""
    return _load()[0]


def why_missing() -> str | None:
    """Why :func:`native` is None and what to do, in one line; None when it is there."""
    return _load()[1]


def isa() -> str:
    """The instruction-set level in use: ``PAREDOWN_ISA`` when set, else the best one here.

    Raises ``InputError`` when ``PAREDOWN_ISA`` names a level that is unknown or not usable here.
    """
    module = native()
    usable: list[str] = module.levels() if module is not None else ["scalar"]
    wanted = os.environ.get("PAREDOWN_ISA")
    if not wanted:
        return usable[-1]
    if wanted not in usable:
        raise InputError(
            f"PAREDOWN_ISA={wanted!r} is unknown or not usable here; usable: {', '.join(usable)}"
        )
    return wanted


def mallocs_library() -> Path | None:
    """The malloc interposer to ``LD_PRELOAD`` in a measuring child, None where it was not built."""
    module = native()
    if module is None or module.__file__ is None:
        return None
    path = Path(module.__file__).with_name("libparedown_mallocs.so")
    return path if path.is_file() else None
