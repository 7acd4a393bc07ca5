"""Dual-tree wavelets: perfect reconstruction, orientation, energy that a shift does not change."""

import math

import pytest
import torch

from paredown.errors import InputError
from paredown.nn import DualTree
from paredown.nn.wavelet import LOW13, LOW19, filtered, highpass, lowpass


def test_the_filters_reconstruct_exactly():
    """H0 G0 + H1 G1 is one: the two-channel bank loses nothing."""
    low, back = lowpass(LOW13), lowpass(LOW19)
    assert low.sum() == pytest.approx(1, abs=1e-15)
    assert back.sum() == pytest.approx(1, abs=1e-15)
    sums = torch.zeros(31, dtype=torch.float64)
    for a, b in ((low, back), (highpass(back), highpass(low))):
        for i, tap in enumerate(a):
            sums[i : i + b.shape[0]] += tap * b
    impulse = torch.zeros(31, dtype=torch.float64)
    impulse[15] = 1
    torch.testing.assert_close(sums, impulse, atol=1e-15, rtol=0)


@pytest.mark.parametrize("size", [(2, 2), (2, 6), (8, 8), (14, 10), (56, 56)])
def test_the_inverse_gives_the_map_back(size):
    tree, x = DualTree(), torch.randn(2, 3, *size)
    low, bands = tree(x)
    assert low.shape == x.shape
    assert bands.shape == (2, 2, 3, 6, size[0] // 2, size[1] // 2)
    torch.testing.assert_close(tree.inverse(low, bands), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("band", range(6))
def test_each_band_answers_to_its_own_direction(band):
    """A wave along 15 + 30 * band degrees excites that band most."""
    # The diagonal bands lie further out in frequency than the others.
    angle, rate = math.radians(15 + 30 * band), 2.4 if band % 3 == 1 else 1.9
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wave = torch.cos(rate * (math.sin(angle) * x + math.cos(angle) * y))
    _, bands = DualTree()(wave[None, None])
    inner = bands[..., 6:-6, 6:-6]
    energy = inner.square().sum((0, 1, 2, 4, 5))
    assert energy.argmax() == band


def test_a_shift_moves_less_energy_than_in_a_decimated_transform():
    torch.manual_seed(0)
    tree = DualTree()
    blob = torch.randn(1, 1, 8, 8)
    here, there = torch.zeros(2, 1, 1, 64, 64)
    here[..., 28:36, 28:36] = blob
    there[..., 28:36, 29:37] = blob

    def ours(x):
        return tree(x)[1].square().sum((0, 1, 2, 4, 5))

    def decimated(x):
        kinds = ((tree.low, tree.high), (tree.high, tree.high), (tree.high, tree.low))
        maps = [filtered(filtered(x, a, 3), b, 2)[..., ::2, ::2] for a, b in kinds]
        return torch.stack([m.square().sum() for m in maps])

    def change(energy):
        one, two = energy(here), energy(there)
        return ((one - two).abs() / one).max()

    assert change(ours) < 0.5 * change(decimated)


def test_odd_sides_are_refused():
    with pytest.raises(InputError, match="even sides"):
        DualTree()(torch.zeros(1, 1, 5, 4))
