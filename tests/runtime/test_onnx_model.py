"""A user's ONNX file: checked, run, lowered; refused in one line when it is damaged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from runtime_nets import convnet
from torch import nn

from paredown import runtime
from paredown.errors import InputError, TargetError
from paredown.runtime.gate import gate
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.onnx_workload import onnx_workload
from paredown.workload import Workload


class TwoInTwoOut(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a * 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    runtime.backend("onnxruntime").lower(convnet(), threads=1).save(folder)
    return (folder / "model.onnx").rename(folder / "net.onnx")


def test_workload_runs_like_the_model_it_came_from(file: Path) -> None:
    workload = onnx_workload(file)
    assert workload.name == "net"
    assert [tuple(t.shape) for t in workload.inputs] == [(2, 3, 16, 16)]
    source = convnet()
    torch.testing.assert_close(workload.model(*source.inputs), source.call(), rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(workload.model)
    assert isinstance(again, OnnxModule)
    assert torch.equal(again(*source.inputs), workload.model(*source.inputs))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_lowered_saved_and_loaded(file: Path, backend: str, tmp_path: Path) -> None:
    workload = onnx_workload(file)
    executable = runtime.backend(backend).lower(workload, threads=1)
    assert gate(executable, workload).error < 1e-5
    assert executable.executed()
    executable.save(tmp_path)
    again = runtime.backend(backend).load(tmp_path, threads=1)
    assert torch.equal(again(*workload.inputs), executable(*workload.inputs))
    with pytest.raises(InputError, match="was compiled for"):
        executable(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_torch_backends_need_a_torch_module(file: Path, backend: str) -> None:
    reasons = runtime.backend(backend).supports(onnx_workload(file), None)
    assert "needs a torch module" in reasons[0]


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    source = Workload(TwoInTwoOut(), inputs)
    runtime.backend("onnxruntime").lower(source, threads=1).save(tmp_path)
    workload = onnx_workload(tmp_path / "model.onnx")
    got = workload.model(*inputs)
    assert isinstance(got, tuple)
    for a, b in zip(got, source.call(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(InputError, match="takes the inputs"):
        workload.model(inputs[0])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_file(file: Path, tmp_path: Path, keep: float) -> None:
    data = file.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(TargetError, match="not a valid ONNX file") as e:
        onnx_workload(cut)
    assert "\n" not in str(e.value)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such file"):
        onnx_workload(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(TargetError, match="not a valid ONNX file"):
        onnx_workload(tmp_path / "text.onnx")
