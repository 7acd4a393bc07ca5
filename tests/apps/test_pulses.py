"""Pulses: shapes and slopes, the bound that a fit reaches, integers that agree bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from paredown.apps.pulses import classic
from paredown.apps.pulses.integer import IntegerNet, PulseNet, exported, scaled
from paredown.apps.pulses.signals import Setup, cramer_rao, least, pulses, shape, slope
from paredown.apps.pulses.training import Plan, adapt, read, resolution, targets, train
from paredown.errors import InputError

SETUP = Setup()


def trained(steps: int = 60) -> PulseNet:
    torch.manual_seed(0)
    net = PulseNet()
    plan = Plan(steps=steps, quantized_steps=20)
    train(SETUP, net, plan, 0)
    adapt(SETUP, net, plan, 0)
    return net


def test_a_pulse_peaks_where_it_should() -> None:
    fine = Setup(samples=60, start=9.0, order=3, tau=2.0)
    wave = shape(fine, 9.0)[0]
    assert wave.argmax() == 9 + 3 * 2
    assert wave.max() == pytest.approx(1)
    assert not wave[:10].any()
    near = (shape(SETUP, 8.3 + 1e-5) - shape(SETUP, 8.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope(SETUP, 8.3), near, atol=1e-6)


def test_noise_has_the_asked_power() -> None:
    clear = Setup(amplitudes=(0.0, 0.0), baseline=0.5, bits=16)
    found = pulses(clear, 4000, 0).waves - 0.5
    assert np.std(found) == pytest.approx(clear.noise, rel=0.03)
    assert 20 * np.log10(1 / clear.noise) == pytest.approx(47.4)
    np.testing.assert_allclose(np.cov(found.T)[5], clear.covariance[5], atol=0.1 * clear.noise**2)


def test_the_bound_by_hand_and_the_fit_that_reaches_it() -> None:
    white = Setup(flicker=0.0, bits=24)
    wave, by = shape(white, 8.4)[0], slope(white, 8.4)[0]
    # Two unknowns: the part of the slope that looks like an amplitude tells nothing.
    rest = by - wave * (by @ wave) / (wave @ wave)
    assert cramer_rao(white, 8.4, 0.8)[0] == pytest.approx(white.noise / 0.8 / np.linalg.norm(rest))
    held = pulses(SETUP, 3000, 3)
    start, size = classic.matched_filter(SETUP, held.waves)
    time, energy = least(SETUP)
    assert np.std(start - held.start) == pytest.approx(time, rel=0.06)
    assert np.std((size - held.amplitude) / held.amplitude) == pytest.approx(energy, rel=0.08)


def test_classic_times_of_clean_pulses() -> None:
    clean = Setup(snr_db=160, bits=30)
    known, held = pulses(clean, 300, 1), pulses(clean, 300, 2)
    one = Setup(snr_db=160, bits=30, amplitudes=(0.8, 0.8))
    exact = pulses(one, 300, 4)
    for estimate in (classic.leading_edge, classic.constant_fraction):
        seen = classic.calibrated(one, estimate, pulses(one, 300, 5), exact.waves)
        assert np.std(seen - exact.start) < 0.02
    walk = [
        np.std(classic.calibrated(clean, e, known, held.waves) - held.start)
        for e in (classic.leading_edge, classic.constant_fraction)
    ]
    # A fixed level is crossed later by a smaller pulse, a fraction is not.
    assert walk[0] > 5 * walk[1]


def test_integers_agree_bit_for_bit() -> None:
    net = trained()
    whole = exported(net)
    held = pulses(SETUP, 200, 2).waves
    sums = whole.sums(held)
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(whole.sums(held, native=True), sums)
    again = IntegerNet.from_plain(json.loads(json.dumps(whole.to_plain())))
    np.testing.assert_array_equal(again.sums(held), sums)
    assert all(x.weight.dtype == np.int8 and x.multiplier < 1 << 15 for x in whole.layers[:-1])


def test_integers_say_what_fake_quantization_says() -> None:
    net = trained()
    held = pulses(SETUP, 200, 2).waves
    with torch.inference_mode():
        fake = net(torch.from_numpy(held)).numpy()
        plain = net.quantizing(False)(torch.from_numpy(held)).numpy()
    whole = exported(net)(held)
    # Rounding half up or to even, and 15 bits of multiplier, move a code now and then.
    assert np.abs(whole - fake).mean() < 0.1 * np.abs(plain - fake).mean() + 0.01
    assert np.abs(whole - fake).max() < 0.2


def test_pile_up_and_ranges() -> None:
    found = pulses(SETUP, 500, 0, pile_up=1.0)
    alone = pulses(SETUP, 500, 0)
    assert found.waves[:, 30:].sum() > alone.waves[:, 30:].sum()
    assert ((alone.start >= 8) & (alone.start < 9)).all()
    assert alone.waves.min() >= 0
    start, amplitude = read(SETUP, targets(SETUP, alone).astype(np.float64))
    np.testing.assert_allclose(start, alone.start, atol=1e-5)
    np.testing.assert_allclose(amplitude, alone.amplitude, atol=1e-5)
    assert resolution(SETUP, targets(SETUP, alone).astype(np.float64), alone)[0] < 1e-5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="before the pulse's peak"):
        Setup(samples=10)
    with pytest.raises(InputError, match="flicker"):
        Setup(flicker=2)
    with pytest.raises(InputError, match="too few"):
        PulseNet(samples=12)
    with pytest.raises(InputError, match="never seen"):
        exported(PulseNet())
    with pytest.raises(InputError, match="0 to 1"):
        scaled(1.5)
    with pytest.raises(InputError, match="not an integer network"):
        IntegerNet.from_plain({"step": 1.0, "layers": [{"weight": [[1]]}]})
    multiplier, shift = scaled(0.003)
    assert multiplier / 2**shift == pytest.approx(0.003, rel=1e-4)
