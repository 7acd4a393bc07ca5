"""Emulated networks, straight-through gradients, rounded updates, flipped bits."""

import pytest
import torch
from torch import nn

from paredown.analysis.codes import encode
from paredown.analysis.emulate import emulated, flip_bits, round_after_step, straight_through
from paredown.analysis.formats import FORMATS
from paredown.errors import InputError
from paredown.papers.cards import number_formats


def test_gradients_pass_where_values_are_in_range():
    x = torch.tensor([0.3, 7.0, -7.0, 6.0], requires_grad=True)
    y = straight_through(x, FORMATS["e2m1"])
    assert y.tolist() == [0.5, 6.0, -6.0, 6.0]
    y.sum().backward()
    assert x.grad.tolist() == [1, 0, 0, 1]
    z = torch.randn(4, 32, requires_grad=True)
    straight_through(z, FORMATS["mxfp4"]).sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_an_emulated_network_is_its_layers_rounded_and_the_original_is_not_touched():
    torch.manual_seed(0)
    model, x, form = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.randn(3, 5), FORMATS["e4m3fn"]
    before = model[0].weight.clone()
    linear = nn.functional.linear(
        form.round(x), form.round(model[0].weight), form.round(model[0].bias)
    )
    want = form.round(torch.tanh(form.round(linear)))
    assert torch.equal(emulated(model, form)(x), want)
    assert torch.equal(model[0].weight, before)
    assert not model[0]._forward_hooks
    assert torch.equal(emulated(model, FORMATS["float32"])(x), model(x))
    emulated(model, form)(x.requires_grad_()).sum().backward()
    assert x.grad.abs().min() > 0


def test_small_updates_move_weights_by_stochastic_rounding_alone():
    """Steps of 1/100 of the distance of two numbers, always downwards."""
    ends = {}
    for rounding in ("nearest-even", "stochastic"):
        weight = nn.Parameter(torch.ones(4000))
        optimizer = torch.optim.SGD([weight], lr=0.25 / 100)
        handle = round_after_step(
            optimizer, FORMATS["e5m2"], rounding, torch.Generator().manual_seed(0)
        )
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends[rounding] = weight.detach().clone()
        handle.remove()
        optimizer.step()
        assert torch.equal(weight.detach(), ends[rounding] - 0.25 / 100)
    assert torch.equal(ends["nearest-even"], torch.ones(4000))
    assert ends["stochastic"].mean().item() == pytest.approx(0.75, abs=0.02)


def test_flipped_bits():
    x, form = torch.randn(1000), FORMATS["float16"]
    gen = torch.Generator().manual_seed(0)
    assert torch.equal(flip_bits(x, form, 0.0, gen), form.round(x).double())
    every = flip_bits(torch.tensor([1.0]), FORMATS["e2m1"], 1.0, gen)
    # 1.0 is 0 01 0; all bits flipped 1 10 1, which is -3.
    assert every.item() == -3.0
    held = flip_bits(torch.zeros(200_000), FORMATS["e2m1"], 0.01, gen)
    bits = encode(FORMATS["e2m1"], held)
    share = sum(int((bits >> i & 1).sum()) for i in range(4)) / 800_000
    assert share == pytest.approx(0.01, rel=0.1)
    with pytest.raises(InputError):
        flip_bits(x, form, 1.5, gen)


def test_the_card_counts_what_differs(monkeypatch):
    assert number_formats.differing(1000) == 0
    monkeypatch.setitem(number_formats.CASTS, "float16", torch.bfloat16)
    assert number_formats.differing(1000) > 60_000
