"""`down` on ONNX files, end to end: a CNN from the command line, a transformer from a Workload."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import paredown
from paredown import artefact, targets
from paredown.cli import main
from paredown.errors import ArtefactError, InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from onnx_nets import exported

JUDGED = """
from pathlib import Path
import torch
from paredown import onnx_workload

g = torch.Generator().manual_seed(3)
X = torch.randint(0, 50, (60, 12), generator=g)
FILE = Path(__file__).parent / "transformer.onnx"
Y = onnx_workload(FILE, X[:2]).model(X).argmax(1)


def evaluate(model):
    return (model(X).argmax(1) == Y).double()


workload = onnx_workload(FILE, X[:2], calibration=list(X.split(2)[:8]), evaluate=evaluate, scale=1)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name in ("cnn", "transformer"):
        exported(name, folder)
    (folder / "judged.py").write_text(JUDGED)
    return folder


def pare(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of a command."""
    code = main([*argv, "--json", "-"])
    return code, json.loads(capfd.readouterr().out)


@pytest.mark.slow
def test_down_from_the_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    only = ("--only", "weight-only", "--backend", "onnxruntime", "--threads", "1")
    code, doc = pare(capfd, "down", "cnn.onnx", "--to", "size <= 0.7x", "--effort", "2m",
                     "--out", "out", *only)  # fmt: skip
    assert (code, doc["verdict"]) == (0, "met")
    assert doc["before"]["backend"] == "onnxruntime"
    assert doc["before"]["figures"]["size"]["value"] == (home / "cnn.onnx").stat().st_size
    assert doc["after"]["recipe"]["steps"][0]["technique"] == "weight-only"
    assert doc["after"]["figures"]["memory"]["how"] in ("measured", "unavailable")
    (fidelity,) = [c for c in doc["constraints"] if c["metric"] == "fidelity"]
    assert fidelity["met"]
    assert "needs a torch module" in doc["left_out"]["fold-norm"]
    assert any("random numbers" in n for n in doc["notes"])
    size = sum(f.stat().st_size for f in (home / "out" / "run").iterdir())
    assert doc["after"]["figures"]["size"]["value"] == size

    code, shown = pare(capfd, "show", "out")
    assert (code, shown["manifest"]["backend"]) == (0, "onnxruntime")
    code, sides = pare(capfd, "compare", "cnn.onnx", "out", "--threads", "1")
    assert [s["backend"] for s in sides["sides"]] == ["onnxruntime", "onnxruntime"]
    assert code == 0
    code, gate = pare(capfd, "check", "out", "--to", "size <= 0.7x", "--to", "fidelity >= 0.9",
                      "--threads", "1")  # fmt: skip
    assert (code, gate["met"]) == (0, True)
    code, gate = pare(capfd, "check", "cnn.onnx", "--to", "size <= 1 KiB", "--threads", "1")
    assert (code, gate["met"]) == (1, False)


@pytest.mark.slow
def test_down_on_a_workload_with_its_own_judge(home: Path, tmp_path: Path) -> None:
    found = paredown.down(
        f"{home}/judged.py",
        to=["size <= 0.7x", "drop <= 5%"],
        only=["static-int8"],
        backend="onnxruntime",
        effort="40s",
        threads=1,
        out=tmp_path / "out",
    )
    assert found.verdict == "met"
    by = {c.metric: c for c in found.doc.constraints}
    assert by["drop"].achieved.n is not None
    workload = targets.resolve(f"{home}/judged.py")
    want = workload.call()
    got = found(*workload.inputs)
    assert (got - want).norm() < 0.2 * want.norm()
    assert found(torch.cat([*workload.inputs] * 3)).shape == (6, 10)
    path = next((tmp_path / "out" / "run").glob("model.onnx"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="SHA-256"):
        artefact.load(tmp_path / "out")


def test_refusals_before_compute(home: Path, tmp_path: Path) -> None:
    target, to = str(home / "cnn.onnx"), ["latency <= 0.5x"]
    with pytest.raises(InputError, match="onnx_workload"):
        paredown.down(target, torch.zeros(1, 3, 32, 32), to=to, out=tmp_path / "a")
    for backend in ("eager", "inductor"):
        with pytest.raises(InputError, match="needs a torch module"):
            paredown.down(target, to=to, backend=backend, out=tmp_path / "b")
