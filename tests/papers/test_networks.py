"""Exact parts of the architecture cards: counts, memory of slices, memory access."""

import math

import pytest
import torch

from paredown import zoo
from paredown.nn import OneShotAggregation
from paredown.papers.cards import networks
from paredown.workload import Workload
from paredown.zoo.vovnet import vovnet

MACS = {
    "mobilenetv2": 300.8e6,
    "mobilenetv2-1.4": 582.2e6,
    "mobilenetv2-0.35": 59.3e6,
    "vovnet27-slim": 2.177e9,
    "vovnet39": 7.072e9,
    "vovnet57": 8.930e9,
    "resnet50": 4.089e9,
    "convnext-tiny": 4.456e9,
}


@pytest.mark.parametrize("name", sorted(MACS))
def test_graph_counts_the_published_macs(name):
    with torch.device("meta"):
        model = zoo.create(name)
    graph = networks.graph_of(model, 1, 3, 224, 224)
    assert graph.macs == pytest.approx(MACS[name], rel=2e-3)
    assert graph.params == sum(p.numel() for p in model.parameters())


def test_slices_cut_the_inner_bytes_by_their_number():
    difference, share = networks.MobileNetV2Card().sliced()
    assert difference <= 1e-5
    assert share <= 1.0


def test_peak_counts_what_is_alive_together():
    class Two(torch.nn.Module):
        """Two tensors of 4 kB alive at once, then one of 4 kB beside them."""

        def forward(self, x):
            a = x + 1
            b = x * 2
            c = a + b
            return c.sum()

    graph = networks.graph_of(Two(), 1024)
    assert networks.peak_inner_bytes(graph) == 3 * 4096
    assert graph.source is not None
    assert isinstance(graph.source, Workload)


def test_one_shot_aggregation_by_formula():
    inputs, width, outputs, layers, side = 24, 16, 40, 5, 14
    block = OneShotAggregation(inputs, width, outputs, layers=layers)
    weights = 9 * width * (inputs + (layers - 1) * width) + (inputs + layers * width) * outputs
    norms = 2 * (layers * width + outputs)
    assert networks.conv_weights(block) == weights
    assert sum(p.numel() for p in block.parameters()) == weights + norms
    graph = networks.graph_of(block, 1, inputs, side, side)
    assert graph.macs == weights * side * side


def test_memory_access_is_least_at_equal_channels():
    """MAC >= 2 sqrt(hw B / k^2) + B / hw for work B, attained where inputs equal outputs."""
    side, kernel, product = 28, 3, 64 * 64
    work = side * side * kernel**2 * product
    bound = 2 * math.sqrt(side * side * work / kernel**2) + work / (side * side)
    access = {
        c: networks.memory_access(
            torch.nn.Conv2d(c, product // c, kernel, padding=1, bias=False), side
        )
        for c in (8, 16, 32, 64, 128, 256)
    }
    assert access[64] == pytest.approx(bound)
    assert min(access, key=access.get) == 64
    assert all(access[c] > bound for c in access if c != 64)


def test_dense_block_has_nearly_the_work_of_the_osa():
    osa = networks.one_shot()
    dense = networks.DenseBlock(128, networks.dense_growth(osa), networks.DENSE_LAYERS)
    ratio = networks.conv_weights(dense) / networks.conv_weights(osa)
    assert ratio == pytest.approx(1, abs=0.05)
    x = torch.randn(1, 128, 9, 9)
    with torch.inference_mode():
        assert dense.eval()(x).shape == (1, dense.outputs, 9, 9)
        assert torch.equal(dense(x)[:, :128], x)


def test_stages_halve_with_odd_sides():
    model = vovnet("27-slim", num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 63, 65)).shape == (1, 3)
