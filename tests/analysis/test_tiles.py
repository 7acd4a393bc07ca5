"""Tile-wise numbers: scales do what they should, LogFMT's levels are its own."""

from __future__ import annotations

import math

import pytest
import torch

from paredown.analysis.floats import Float
from paredown.analysis.formats import FORMATS
from paredown.analysis.tiles import logfmt, product, scaled
from paredown.errors import InputError

E4M3 = FORMATS["e4m3fn"]
assert isinstance(E4M3, Float)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_one_tile_is_one_scale_and_tiles_are_apart() -> None:
    x = normal(5, 300)
    whole = scaled(x, E4M3)
    assert torch.equal(whole, scaled(x, E4M3, (5, 300)))
    for r in range(5):
        for c in (0, 128, 256):
            part = x[r : r + 1, c : c + 128]
            assert torch.equal(scaled(x, E4M3, (1, 128))[r, c : c + 128], scaled(part, E4M3)[0])


def test_the_largest_of_each_tile_is_kept_and_errors_are_half_a_step() -> None:
    x = normal(3, 256) * torch.logspace(-6, 6, 3)[:, None]
    got = scaled(x, E4M3, (1, 128))
    top = x.view(3, 2, 128).abs().amax(-1)
    assert torch.allclose(got.view(3, 2, 128).abs().amax(-1), top, rtol=1e-6)
    normals = x.abs() > (top / 448 * 2**-6).repeat_interleave(128, 1)
    assert ((got - x).abs()[normals] <= x.abs()[normals] * (2**-4 + 1e-6)).all()


def test_scales_of_powers_of_two_change_nothing() -> None:
    x, w = normal(4, 256), normal(130, 256)
    a = product(x, w, E4M3)
    assert torch.allclose(product(x * 2**40, w, E4M3), a * 2**40, rtol=1e-6)


def test_logfmt_keeps_its_levels_zeros_and_signs() -> None:
    bits = 6
    last = 2 ** (bits - 1) - 2
    levels = torch.exp(torch.linspace(-3.0, 2.0, last + 1))
    x = torch.cat((levels, -levels, torch.zeros(2)))
    got = logfmt(x, bits, tile=64)
    assert torch.allclose(got, x, rtol=1e-5)
    assert torch.equal(got.sign(), x.sign())
    assert torch.equal(logfmt(torch.zeros(7), 8), torch.zeros(7))
    assert torch.allclose(logfmt(torch.tensor([0.3, -0.3]), 8), torch.tensor([0.3, -0.3]))


def test_logfmt_takes_the_nearer_level_in_linear_space() -> None:
    # Levels 1, e: their middle is 1.859, in the logarithm 1.649.
    x = torch.tensor([1.0, 1.7, 1.8, 1.9, math.e])
    got = logfmt(x, 3, tile=5)  # three levels: 1, e^0.5, e
    root = math.exp(0.5)
    assert torch.allclose(got, torch.tensor([1.0, root, root, root, math.e]), rtol=1e-5)
    y = torch.tensor([1.0, 2.1, 2.25, math.e])
    assert torch.allclose(
        logfmt(y, 3, tile=4), torch.tensor([1.0, root, math.e, math.e]), rtol=1e-5
    )


def test_logfmt_error_is_half_a_step_and_more_bits_are_closer() -> None:
    x = normal(9, 130)
    errors = [float((logfmt(x, b) - x).norm() / x.norm()) for b in (4, 6, 8, 10)]
    assert errors == sorted(errors, reverse=True)
    size = x[:, :128].abs()
    step = (size.amax(-1).log() - size.amin(-1).log()) / 126
    off = (logfmt(x[:, :128]) - x[:, :128]).abs() / size
    assert (off <= (step.exp() - 1)[:, None] / 2 + 1e-4).all()


def test_logfmt_limits_its_range() -> None:
    x = torch.tensor([1.0, 2.0**-31, 2.0**-40])
    got = logfmt(x, 8, tile=3)
    assert got[0] == 1
    assert got[1] > 0
    assert got[2] == 0


def test_refusals() -> None:
    with pytest.raises(InputError, match="matrix"):
        scaled(torch.zeros(3), E4M3)
    with pytest.raises(InputError, match="3 bits"):
        logfmt(torch.zeros(3), 2)
