"""C++ text to something to call: the system's compiler, found and run when it is needed.

One process of the compiler takes several programs at once. Nothing is run but what was compiled
here from text that the caller gave; foreign text belongs in a child process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from paredown.errors import InputError, LoweringError

COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "-fPIC", "-shared",
)  # fmt: skip
VECTOR_MATH = ("cosf", "coshf", "erff", "expf", "logf", "sinf", "sinhf", "tanf", "tanhf")
"""Functions of which glibc (2.35 and later, x86-64) has vector forms in libmvec."""
LIMIT_S = 120.0


def compiler() -> str:
    """The C++ compiler's path: ``$CXX``, else the first of ``COMPILERS``; ``LoweringError``."""
    chosen = os.environ.get("CXX")
    for name in (chosen,) if chosen else COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    what = f"$CXX names {chosen!r}, which is not there" if chosen else "none was found"
    raise LoweringError(f"kernels in C++ need a compiler and {what}: apt-get install g++")


class Library:
    """A shared library of programs; its file goes when the object does."""

    def __init__(self, texts: Sequence[str], extra: Sequence[str] = ()) -> None:
        """Compile; raises ``LoweringError`` with the compiler's first error."""
        self._folder = tempfile.TemporaryDirectory(prefix="paredown-loops-")
        folder = Path(self._folder.name)
        files: list[str] = []
        for n, text in enumerate(texts):
            files.append(str(folder / f"program{n}.cpp"))
            Path(files[-1]).write_text(text, encoding="utf-8")
        target = folder / "programs.so"
        _compile([*FLAGS, *extra, *_vector_math(), *files, "-o", str(target), "-lm"])
        self._library = ctypes.CDLL(str(target))

    def function(self, name: str, parameters: int) -> Any:
        """``extern "C" void name(...)`` of so many pointers; raises ``LoweringError``."""
        try:
            found = self._library[name]
        except AttributeError:
            raise LoweringError(f'the text has no extern "C" function {name}') from None
        found.argtypes = [ctypes.c_void_p] * parameters
        found.restype = None
        return found

    def threads(self, count: int) -> None:
        """How many threads parallel loops use from now on."""
        if count < 1:
            raise InputError(f"a program runs on at least one thread, not {count}")
        set_threads = getattr(self._library, "omp_set_num_threads", None)
        if set_threads is not None:
            set_threads(ctypes.c_int(count))


def _compile(arguments: list[str]) -> None:
    try:
        done = subprocess.run(
            [compiler(), *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoweringError(f"the C++ compiler took more than {LIMIT_S:.0f} s") from None
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [x for x in lines if "error" in x] or lines or ["no message"]
        raise LoweringError(f"the C++ compiler refused the text: {errors[0].strip()[:300]}")


@cache
def _vector_math() -> tuple[str, ...]:
    """Options that tell the compiler of vector forms of the C library's functions, if it has any.

    Proved by compiling a loop that needs one.
    """
    folder = Path(tempfile.mkdtemp(prefix="paredown-loops-"))
    try:
        header, probe = folder / "probe.hpp", folder / "probe.cpp"
        header.write_text(_declarations(), encoding="utf-8")
        probe.write_text(
            'extern "C" void probe(float* x) {\n#pragma omp simd\n'
            "  for (int i = 0; i < 64; ++i) x[i] = tanhf(expf(x[i]));\n}\n",
            encoding="utf-8",
        )
        _compile([*FLAGS, "-include", str(header), str(probe), "-o", str(folder / "p.so"), "-lm"])
        ctypes.CDLL(str(folder / "p.so"))
    except (LoweringError, OSError):
        return ()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ("-include", str(_kept_header()))


@cache
def _kept_header() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="paredown-loops-"))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "vector_math.hpp"
    path.write_text(_declarations(), encoding="utf-8")
    return path


def _declarations() -> str:
    each = "".join(
        f"#pragma omp declare simd notinbranch\nfloat {name}(float) noexcept;\n"
        for name in VECTOR_MATH
    )
    return f'extern "C" {{\n{each}}}\n'
