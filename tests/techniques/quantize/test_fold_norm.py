"""Folding: exact for every layer and dimension, and refused wherever the dataflow forbids it."""

import pytest
import torch
from quant_nets import settle
from torch import nn

from paredown.errors import NotApplicable
from paredown.graph.capture import capture
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.workload import Workload

LAYERS = {
    "linear": (nn.Linear(6, 8), nn.BatchNorm1d(8), (5, 6)),
    "linear no bias": (nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), (5, 6)),
    "conv1d": (nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 9)),
    "grouped conv2d": (nn.Conv2d(6, 8, 3, 2, groups=2), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "not affine": (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False), (2, 6, 3, 3)),
    "conv3d": (nn.Conv3d(6, 8, 3, bias=False), nn.BatchNorm3d(8), (1, 6, 5, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 5)),
    "transposed 2d": (nn.ConvTranspose2d(6, 8, 3, 2, groups=2), nn.BatchNorm2d(8), (2, 6, 4, 4)),
}


def run(model: nn.Module, *shape: int) -> tuple[Workload, object]:
    torch.manual_seed(0)
    workload = Workload(settle(model), (torch.randn(*shape),))
    return workload, FoldNorm().sites(workload, capture(workload))


@pytest.mark.parametrize("case", LAYERS)
def test_exact(case):
    layer, norm, shape = LAYERS[case]
    workload, sites = run(nn.Sequential(layer, norm), *shape)
    assert sites.ok == ("1:norm",)
    change = FoldNorm().apply(workload, sites)
    want, got = workload.call(), change.workload.call()
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    assert isinstance(change.workload.model[1], nn.Identity)
    assert not any("batch_norm" in n.op for n in capture(change.workload).nodes)


class Wired(nn.Module):
    """A convolution and a norm, wired by ``how``; registration order says nothing."""

    def __init__(self, how):
        super().__init__()
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.how = how

    def forward(self, x):
        return self.how(self, x)


REFUSED = {
    "also used elsewhere": lambda m, x: m.norm(y := m.conv(x)) + y,
    "runs more than once": lambda m, x: m.norm(m.conv(m.conv(x))),
    "ran 2 times": lambda m, x: m.norm(m.conv(m.norm(x))),
    "input of the model": lambda m, x: m.conv(m.norm(x)),
    "comes from aten::relu": lambda m, x: m.norm(torch.relu(m.conv(x))),
    "never ran": lambda m, x: m.conv(x),
    "comes from aten::native_batch_norm": lambda m, x: m.norm(m.norm2(m.conv(x))),
    "read from outside": lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_by_dataflow(reason):
    _, sites = run(Wired(REFUSED[reason]), 2, 4, 3, 3)
    assert reason in sites.refused["norm:norm"]
    assert "norm:norm" not in sites.ok


def test_returned_convolution_output_is_not_touched():
    def both(m, x):
        y = m.conv(x)
        return y, m.norm(y)

    _, sites = run(Wired(both), 2, 4, 3, 3)
    assert "also used elsewhere" in sites.refused["norm:norm"]


def test_follows_the_dataflow_not_the_registration():
    workload, sites = run(Wired(lambda m, x: m.norm2(m.other(m.norm(m.conv(x))))), 2, 4, 3, 3)
    change = FoldNorm().apply(workload, sites)
    assert change.decisions.values["into"] == {"norm": "conv", "norm2": "other"}
    assert torch.allclose(change.workload.call(), workload.call(), atol=1e-5)


def test_norm_over_another_axis_than_the_features():
    _, sites = run(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), 3, 5, 6)
    assert "another axis" in sites.refused["1:norm"]


def test_tied_convolutions_and_missing_statistics():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].weight = model[0].weight
    _, sites = run(model, 1, 4, 3, 3)
    assert "shared with 2.weight" in sites.refused["1:norm"]
    bare = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    workload, sites = run(bare, 2, 4, 3, 3)
    assert "no running statistics" in sites.refused["1:norm"]
    with pytest.raises(NotApplicable, match="no running statistics"):
        FoldNorm().apply(workload, sites)


def test_some_sites_only():
    workload, sites = run(Wired(lambda m, x: m.norm2(m.other(m.norm(m.conv(x))))), 2, 4, 3, 3)
    change = FoldNorm().apply(workload, sites.only(["norm2"]))
    assert isinstance(change.workload.model.norm, nn.BatchNorm2d)
    assert isinstance(change.workload.model.norm2, nn.Identity)
