"""An ONNX file's graph against the torch capture of the model it was exported from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from paredown import runtime
from paredown.errors import CaptureError
from paredown.graph.capture import capture
from paredown.runtime.onnx_workload import onnx_workload
from paredown.workload import Workload


class Mixed(nn.Module):
    """Convolutions (grouped, transposed), pooling, a norm, attention's products, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.up(torch.nn.functional.silu(self.depth(self.conv(x))))))
        x = self.norm(x.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 16))
        q, k, v = self.qkv(x).chunk(3, -1)
        x = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, Workload]:
    folder: Path = tmp_path_factory.mktemp("graph")
    torch.manual_seed(0)
    source = Workload(Mixed().eval(), (torch.randn(2, 3, 16, 16),))
    runtime.backend("onnxruntime").lower(source, threads=1).save(folder)
    return source, onnx_workload(folder / "model.onnx")


def test_work_and_parameters_equal_the_torch_capture(pair: tuple[Workload, Workload]) -> None:
    want, got = (capture(w) for w in pair)
    assert got.macs == want.macs
    # Scalars that the exporter writes as constants count as none of the model's parameters.
    assert want.params <= got.params <= want.params + 8
    assert not got.unpriced
    assert list(got.source.model.layers()) == list(pair[1].model.layers())


def test_storages_live_from_their_node_to_their_last_use(pair: tuple[Workload, Workload]) -> None:
    graph = capture(pair[1])
    made = [s for s in graph.storages.values() if s.created >= 0]
    assert made
    outputs = {graph.tensors[t].storage for t in graph.outputs}
    for s in made:
        assert (s.freed is None) == (s.id in outputs)
        assert s.freed is None or s.freed >= s.created


def test_an_onnx_file_cannot_be_trained(pair: tuple[Workload, Workload]) -> None:
    with pytest.raises(CaptureError, match="cannot be trained"):
        capture(pair[1], train=True)


def test_operator_without_a_rule_is_reported(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    node = helper.make_node("NonZero", ["x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])],
    )
    save(helper.make_model(graph, ir_version=10), tmp_path / "nonzero.onnx")
    found = capture(onnx_workload(tmp_path / "nonzero.onnx"))
    assert found.unpriced == ["onnx::NonZero"]
    assert found.nodes[0].macs is None
