"""The fingerprint: stable, light, and honest about what it could not know."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from paredown.measure import fingerprint as machine


def test_key_is_stable_and_leaves_probe_and_versions_out() -> None:
    first, second = machine.fingerprint(probe=False), machine.fingerprint(probe=False)
    assert first == second
    changed = first.model_copy(
        update={"probe": {"peak_macs_s": 1.0}, "versions": {"torch": "0"}, "kernel": "other"}
    )
    assert changed.key == first.key
    assert first.model_copy(update={"cores": first.cores + 1}).key != first.key


def test_it_names_torch_s_version_without_importing_it() -> None:
    code = (
        "import sys; from paredown.measure.fingerprint import fingerprint; "
        "f = fingerprint(probe=False); "
        "assert not {'torch', 'openvino', 'onnxruntime', 'numpy'} & set(sys.modules); "
        "print(f.versions['torch'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    import torch

    assert out.stdout.strip() == torch.__version__


def test_cores_follow_the_affinity() -> None:
    code = (
        "import os; from paredown.measure import fingerprint as f; "
        "os.sched_setaffinity(0, {f.cores()[0]}); print(f.fingerprint(probe=False).cores)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "1"


def test_caches_grow_outwards() -> None:
    own = machine.caches()
    assert list(own.values()) == sorted(own.values())
    shared = machine.shared_caches()
    assert own.keys() == shared.keys()
    assert all(shared[name] >= size for name, size in own.items())
    assert machine.last_level_bytes() >= max(shared.values(), default=0)


def test_probe_takes_about_a_second_and_gives_both_rates() -> None:
    start = time.perf_counter()
    probe = machine.fingerprint().probe
    assert time.perf_counter() - start < 10
    assert set(probe) == {"peak_macs_s", "read_bytes_s"}
    assert min(probe.values()) > 1e6  # a stalled machine was once seen at 1.4e7


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    assert machine.cache_dir() == tmp_path
    monkeypatch.delenv("PAREDOWN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_dir() == tmp_path / "paredown"


def test_others_is_a_share() -> None:
    assert 0.0 <= machine.others(0.05) <= 1.0


@pytest.mark.parametrize(("text", "size"), [("48K", 48 << 10), ("2048K", 2 << 20), ("512", 512)])
def test_sizes_of_sysfs(text: str, size: int) -> None:
    assert machine._bytes(text) == size
