"""The main job needs no network: the demo's command in a namespace without any interface."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNSHARE = shutil.which("unshare")


def blocked(*argv: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a command that can open sockets to nowhere but its own machine's files."""
    assert UNSHARE is not None
    command = [UNSHARE, "--map-root-user", "--net", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


CONNECTS = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)"


@pytest.mark.slow
@pytest.mark.skipif(
    UNSHARE is None or blocked("true").returncode != 0, reason="no network namespaces here"
)
def test_the_demo_runs_with_sockets_blocked(tmp_path):
    assert "Network is unreachable" in blocked(sys.executable, "-c", CONNECTS).stderr
    found = tmp_path / "found.json"
    pare = Path(sys.executable).with_name("pare")
    budget = ["--to", "latency <= 0.2x", "--to", "size <= 0.6x", "--to", "drop <= 2%"]
    run = blocked(str(pare), "down", "examples/digits.py", *budget, "--effort", "60s",
                  "--out", str(tmp_path / "out"), "--json", str(found), cwd=ROOT)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(found.read_text())["verdict"] == "met"
    assert (tmp_path / "out" / "report.html").exists()
