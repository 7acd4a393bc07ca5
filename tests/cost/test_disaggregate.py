"""Attention apart from the weights: bytes by the formula, plans that fit, parts that add up."""

from __future__ import annotations

import pytest

from paredown import device
from paredown.cost.serving import load
from paredown.cost.serving.disaggregate import (
    apart,
    attention_seconds,
    exchanged,
    least_bandwidth,
    model_seconds,
    together,
)
from paredown.errors import InputError, NotApplicable

H100, H20 = device.load("h100-sxm"), device.load("h20")
MODEL = load("llama-3-70b")


def test_exchanged_bytes_are_queries_keys_values_and_results() -> None:
    assert exchanged(MODEL) == 2 * (2 + 2 / 8) * 8192 * 80
    assert exchanged(load("llama-65b")) == 2 * 4 * 8192 * 80
    v3 = load("deepseek-v3")
    assert exchanged(v3) == 2 * 61 * (128 * (2 * 512 + 64) + 576)


def test_parts() -> None:
    context, batch = 4096, 16
    read = batch * context * MODEL.kv_bytes() / 4e12
    assert attention_seconds(MODEL, H20, 1, batch, context) == pytest.approx(read)
    assert attention_seconds(MODEL, H20, 4, batch, context) == pytest.approx(read / 4)
    # Weights bound a small batch, products a large one; one device has nothing to reduce.
    body = 2 * MODEL.active_parameters / 3.35e12
    assert model_seconds(MODEL, H100, 1, 1) == pytest.approx(body, rel=1e-3)
    assert model_seconds(MODEL, H100, 1, 4096) == pytest.approx(
        4096 * MODEL.active_parameters / 4.947e14
    )
    assert least_bandwidth(MODEL, 10, 0.1, share=1.0) == pytest.approx(100 * exchanged(MODEL))


def test_plans_fit_and_count_what_they_say() -> None:
    one = together(MODEL, H100, context=8192)
    assert one.model * 80e9 >= 2 * MODEL.parameters + one.batch * 8192 * MODEL.kv_bytes()
    assert one.price_usd == one.model * 30_000
    two = apart(MODEL, H100, H20, context=8192)
    assert two.model * 80e9 >= 2 * MODEL.parameters
    assert two.attention * 96e9 >= two.batch * 8192 * MODEL.kv_bytes()
    half = two.batch // 2
    parts = (
        model_seconds(MODEL, H100, two.model, half),
        attention_seconds(MODEL, H20, two.attention, half, 8192),
    )
    assert two.seconds == pytest.approx(2 * max(parts))
    assert two.bytes_s == pytest.approx(half * exchanged(MODEL) / (0.2 * sum(parts)))
    assert two.per_dollar == pytest.approx(two.batch / two.seconds / two.price_usd)


def test_a_limit_on_the_token_holds() -> None:
    free = apart(MODEL, H100, H20, context=32768)
    bound = apart(MODEL, H100, H20, context=32768, limit_s=0.02)
    assert bound.per_dollar <= free.per_dollar
    assert bound.seconds <= 2 * 0.02
    assert together(MODEL, H100, context=1024, limit_s=0.03).seconds <= 0.03
    with pytest.raises(NotApplicable, match="no number of h100-sxm serves"):
        together(MODEL, H100, context=1024, limit_s=1e-6)


def test_refusals() -> None:
    with pytest.raises(NotApplicable, match="a100-sxm states no price_usd"):
        together(MODEL, device.load("a100-sxm"), context=1024)
    with pytest.raises(InputError, match="share of"):
        least_bandwidth(MODEL, 1, 1.0, share=0)
