"""The kernels' tests once more under the address and undefined-behaviour sanitizers.

Tile loads and masked vector instructions are not instrumented by the compiler; the poisoned
memory of the tests is what watches those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = (
    "test_products.py",
    "test_sparse_products.py",
    "test_masked_products.py",
    "test_rows.py",
    "test_moved_rows.py",
    "test_attention.py",
    "test_matvec.py",
    "test_mlps.py",
    "test_signs.py",
)


def build(folder: Path) -> Path:
    """The extension with sanitizers on, unoptimised enough to point at lines."""
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder),
        "-DPAREDOWN_SANITIZE=ON",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DSKBUILD_SOABI=",
    ]
    where = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run([*configure, f"-Dnanobind_DIR={where}"], check=True, capture_output=True)
    subprocess.run(
        ["cmake", "--build", str(folder), "--target", "_native"], check=True, capture_output=True
    )
    return next(folder.glob("_native*.so"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("needs g++ and cmake")
    extension = build(tmp_path)
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch keep memory to the end; that is not what is looked for.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=0:exitcode=86",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=87",
        "PAREDOWN_TEST_EXTENSION": str(extension),
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
    }
    files = [str(ROOT / "tests" / "kernels" / name) for name in TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "kernels.sanitized",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *files], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
