"""Integer-only functions against floats, shifts against products, and no float on the way."""

import math

import pytest
import torch
import torch.nn.functional as F

from paredown.analysis import integer as ints
from paredown.analysis.integer_vit import IntegerViT
from paredown.papers.cards.vit_survey import NoFloats
from paredown.runtime.quantized_attention import from_codes
from paredown.zoo.vit import ViT


def test_whole_roots_are_exact():
    torch.manual_seed(0)
    n = torch.cat([torch.arange(3000), torch.randint(2**61, (500,)), torch.tensor([2**62 - 1])])
    assert ints.root(n).tolist() == [math.isqrt(k) for k in n.tolist()]


@pytest.mark.parametrize(("exp", "most"), [(ints.shift_exp, 0.09), (ints.poly_exp, 0.03)])
def test_exponentials(exp, most):
    for scale in (0.004, 0.02, 0.05):
        i = torch.arange(-int(12 / scale), 1)
        value, unit = exp(i, scale)
        assert not value.is_floating_point()
        assert float((value * unit - torch.exp(i * scale)).abs().max()) < most
        assert (value.diff() >= 0).float().mean() > 0.99, "it rises"
        assert (value >= 0).all()


@pytest.mark.parametrize("exp", ["shift", "poly"])
@pytest.mark.parametrize("n", [1, 3, 17, 63])
def test_softmax_rows_sum_to_one(exp, n):
    torch.manual_seed(n)
    i = torch.randint(-2000, 2000, (40, n))
    value, unit = ints.softmax(i, 0.003, 12, exp=exp)
    assert unit == 2.0**-11
    assert float((value * unit - torch.softmax(i * 0.003, -1)).abs().max()) < 0.05
    assert float((value.sum(-1) * unit - 1).abs().max()) <= n * unit
    assert torch.equal(ints.softmax(i + 500, 0.003, 12, exp=exp)[0], value), "shifts cancel"


def test_gelu():
    i = torch.arange(-127, 128)[:, None]
    want = F.gelu(i * 0.04)
    for gelu, most in ((ints.shift_gelu, 0.06), (ints.poly_gelu, 0.03)):
        value, unit = gelu(i, 0.04)
        assert not value.is_floating_point()
        assert float((value * unit - want).abs().max()) < most


@pytest.mark.parametrize("n", [2, 3, 48, 63])
def test_layer_norm_needs_no_scale(n):
    torch.manual_seed(n)
    i = torch.randint(-30000, 30000, (200, n))
    value, unit = ints.normalised(i)
    want = F.layer_norm(i.double(), (n,), eps=0.0)
    assert float((value * unit - want).abs().max()) < 2 * unit
    assert not ints.normalised(torch.full((1, n), 7))[0].any()


def test_dyadic_numbers_and_rescaling():
    for factor in (3.7e-5, 0.4, 0.999999, 1.0, 1.3, 41000.0):
        m, shift = ints.dyadic(factor)
        assert m / 2**shift == pytest.approx(factor, rel=2**-15)
        i = torch.tensor([-1000, -1, 0, 1, 1000])
        off = ints.rescaled(i, factor) - i * factor
        assert float(off.abs().max()) <= 0.5 + 1000 * factor * 2**-15
    assert ints.rescaled(torch.tensor([900, -900]), 1.0, 8).tolist() == [127, -127]


def test_a_product_with_powers_of_two_is_shifts_and_additions():
    torch.manual_seed(0)
    total = torch.tensor([[1000]])
    value = torch.tensor([[1000, 709, 705, 500, 355, 350, 90, 1, 0]])
    codes = ints.log2_codes(value, total, 3)
    # 1000 / 709 rounds to 1, 1000 / 90 to 11, which is 2**3 and a bit below 12
    assert codes.tolist() == [[0, 0, 0, 1, 2, 2, 3, 8, 8]]
    codes = torch.randint(0, 17, (2, 5, 7))  # 16: nothing
    v = torch.randint(-128, 128, (2, 7, 3))
    got = ints.shifted_product(codes, v, 4)
    a = from_codes(codes.double(), torch.tensor(1.0, dtype=torch.float64), 4, "log2")
    assert torch.equal(got.double(), (a @ v.double()) * 2**15)


@pytest.mark.parametrize("exp", ["shift", "poly"])
def test_a_vit_runs_without_floats_and_stays_near(exp):
    torch.manual_seed(0)
    model = ViT(24, 2, 3, 10, 1, image_size=16, patch=4, mlp_ratio=2).eval()
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.15)
    images = torch.randn(6, 1, 16, 16)
    network = IntegerViT(model, [images], exp=exp)
    codes = torch.clamp(torch.round(images / network.image_scale), -127, 127).long()
    with NoFloats() as look:
        out = network.run(codes)
    assert look.floats == 0 < look.calls
    with torch.no_grad():
        want = model(images)
    assert torch.equal(network(images), out * network.head.out_scale)
    assert float((network(images) - want).norm() / want.norm()) < 0.12
    with NoFloats() as look:
        model(images)
    assert look.floats > 0, "the watch sees floats"
