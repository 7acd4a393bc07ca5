"""Exact parts of the card of binary networks along trees, on an untrained network."""

import pytest
import torch

from paredown.papers.cards import binary as card
from paredown.runtime.binary_tree import spanning_tree
from paredown.runtime.forms_binary import BinaryConv


class Bits(torch.nn.Module):
    """Three binary layers of the card's shapes."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = ((64, 32, 1), (64, 64, 2), (64, 64, 1))
        self.layers = torch.nn.ModuleList(
            BinaryConv((out, inputs, 3, 3), (s, s), (1, 1), (1, 1)) for out, inputs, s in shapes
        )
        for layer in self.layers:
            one = torch.where(torch.rand(layer.shape[1:]) < 0.5, -1.0, 1.0)
            layer.fill(one * torch.where(torch.rand(layer.shape) < apart, -1.0, 1.0))
            layer.threshold.normal_(0, 0.3)


def test_costs_are_counted_over_positions_and_files():
    model = Bits(0.05)
    found = card.costs(model)
    counted = [spanning_tree(m.weight_signs().numpy()) for m in model.layers]
    plain = 64 * (64 * 288 + 16 * 576 + 16 * 576)
    along = sum(p * t.bit_ops for p, t in zip(card.POSITIONS, counted, strict=True))
    assert found["bit products"] == plain / along
    assert found["bytes"] > found["bytes, zlib"] > 1
    assert found["apart"] == pytest.approx(0.05, abs=0.01)
    assert found["depth"] == max(t.depth for t in counted)


def test_every_order_gives_the_convolution_and_scipys_length():
    for apart in (0.0, 0.05, 0.5):
        assert card.differing(Bits(apart), 0) == {"differing": 0.0, "longer": 0.0}


def test_random_signs_and_what_is_timed():
    assert card.random_gain() == pytest.approx(2.2, abs=0.1)
    runs = dict(card.subjects(0.1))
    want = runs.pop("popcount")().T
    floats = runs.pop("float32 product")
    assert floats().shape == want.T.shape
    assert len(runs) == 3
    for run in runs.values():
        assert torch.equal(run(), want)
