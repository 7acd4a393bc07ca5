"""Decoders over devices: schedules against their formulas, splits against one device, streaming."""

from __future__ import annotations

from itertools import pairwise

import pytest

from paredown import device
from paredown.cost.serving import load
from paredown.cost.serving.parallel import (
    Split,
    all_reduce,
    circulating,
    draining,
    exchange_steps,
    fits,
    largest_batch,
    simulate,
    splits,
    stage,
    touched,
)
from paredown.cost.serving.streaming import break_even, home, streamed
from paredown.cost.serving.streaming import largest_batch as streamed_batch
from paredown.device import Link
from paredown.errors import InputError, NotApplicable

DGX, ONE = device.load("dgx-a100"), device.load("a100-sxm")
WORKSTATION = device.load("a6000-workstation")
MODEL = load("llama-2-7b")


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("batches", [1, 2, 4, 7])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_schedules_take_what_the_formulas_say(stages: int, batches: int, tokens: int) -> None:
    for drain, formula in ((False, circulating), (True, draining)):
        slots = simulate(stages, batches, tokens, drain=drain)
        assert max(s.start for s in slots) + 1 == formula(stages, batches, tokens)
        assert len({(s.start, s.stage) for s in slots}) == len(slots) == stages * batches * tokens
        for b in range(batches):
            mine = [s for s in slots if s.batch == b]
            order = sorted(mine, key=lambda s: s.start)
            assert [(s.token, s.stage) for s in order] == [
                (t, p) for t in range(tokens) for p in range(stages)
            ]
            assert all(a.start < z.start for a, z in pairwise(order))
    assert circulating(stages, batches, tokens) <= draining(stages, batches, tokens)


def test_a_split_over_one_device_is_that_device() -> None:
    alone = stage(MODEL, ONE, Split(), batch=4, context=128)
    part = stage(MODEL, DGX, Split(), batch=4, context=128)
    assert part.compute == pytest.approx(alone.compute)
    assert part.memory == pytest.approx(alone.memory)
    assert part.link == alone.link == 0


def test_tensor_parallelism_divides_work_and_adds_all_reduces() -> None:
    one = stage(MODEL, DGX, Split(1), batch=8, context=100)
    eight = stage(MODEL, DGX, Split(8), batch=8, context=100)
    assert eight.compute == pytest.approx(one.compute / 8)
    assert eight.memory == pytest.approx(one.memory / 8)
    nbytes = 8 * MODEL.hidden * 2
    assert eight.link == pytest.approx(2 * MODEL.layers * 2 * 7 / 8 * nbytes / 3e11)
    # Stages hold the layers' share, the last one the head.
    half = stage(MODEL, DGX, Split(1, 2), batch=8, context=100)
    assert one.memory / 2 < half.memory < one.memory * 0.52
    assert one.bound == "memory"
    assert stage(MODEL, DGX, Split(1), batch=1, context=0, tokens=2048).bound == "compute"


def test_rings() -> None:
    assert all_reduce(800, 1, None) == 0
    assert all_reduce(800, 4, Link(to="x", bytes_s=100)) == 2 * 3 / 4 * 8
    assert all_reduce(800, 4, Link(to="x", bytes_s=100, latency_s=1)) == 12 + 6
    with pytest.raises(NotApplicable, match="no link"):
        all_reduce(1, 2, None)
    assert [s.devices for s in splits(DGX)] == [8] * 4
    assert splits(ONE) == [Split()]
    assert exchange_steps(128, 8) == (128, 24)
    with pytest.raises(InputError, match="multiple"):
        exchange_steps(10, 4)
    with pytest.raises(InputError, match="at least one device"):
        Split(0)
    with pytest.raises(InputError, match="at least one stage"):
        simulate(0, 1, 1)


def test_experts_are_read_as_tokens_reach_them() -> None:
    v3 = load("deepseek-v3")
    body = v3.parameters - 2 * v3.vocabulary * v3.hidden
    one = v3.active_parameters - v3.vocabulary * v3.hidden
    assert touched(v3, 1) == pytest.approx(one)
    assert touched(v3, 100_000) == pytest.approx(body)
    assert one < touched(v3, 16) < body
    assert touched(MODEL, 1) == touched(MODEL, 64)


def test_what_fits() -> None:
    whole = Split(8)
    batch = largest_batch(MODEL, DGX, context=4096)
    assert fits(MODEL, DGX, whole, batch=batch, context=4096)
    assert not fits(MODEL, DGX, whole, batch=batch + 1, context=4096)
    assert largest_batch(load("lm-530b"), DGX, context=1) == 0


def test_streaming_hides_the_fetch_from_the_break_even_on() -> None:
    model = load("lm-530b")
    level = home(model, WORKSTATION)
    assert level.name == "NVMe"
    even = break_even(WORKSTATION, level)
    assert even == 2 * 7.74e13 / 5e9
    below = streamed(model, WORKSTATION, batch=1, tokens=int(even / 4))
    above = streamed(model, WORKSTATION, batch=8, tokens=int(even / 4))
    assert below.seconds == pytest.approx(below.fetch, rel=0.01)
    assert above.seconds == pytest.approx(above.compute, rel=0.02)
    for found in (below, above):
        assert max(found.fetch, found.compute) < found.seconds < found.synchronous
    # At home in the nearest level nothing is fetched.
    near = streamed(load("gpt-neox-20b"), WORKSTATION, batch=1, tokens=8)
    assert near.fetch == 0
    assert near.seconds == pytest.approx(near.compute)


def test_batches_of_streaming_fill_the_device() -> None:
    model = load("llama-65b")
    kept = streamed_batch(model, WORKSTATION, tokens=512, cached=True)
    passing = streamed_batch(model, WORKSTATION, tokens=512, cached=False)
    assert 0 < kept < passing
    with pytest.raises(NotApplicable, match=r"B more than the NVMe of a6000"):
        home(load("deepseek-v3").model_copy(update={"layers": 200}), WORKSTATION)
    with pytest.raises(InputError, match="at least one sequence"):
        streamed(model, WORKSTATION, batch=0, tokens=1)
