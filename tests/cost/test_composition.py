"""A composition of experts: LRU as by hand, switching by the slow level, footprints, refusals."""

from __future__ import annotations

import random

import pytest

from paredown import device
from paredown.cost.serving import load
from paredown.cost.serving.composition import (
    footprint,
    misses,
    request,
    slots,
    step_seconds,
    switch_seconds,
    tiers,
)
from paredown.errors import InputError, NotApplicable

NODE, HOST = device.load("sn40l"), device.load("dgx-h100")
EXPERT = load("llama-2-7b")


def by_hand(asked: list[int], places: int) -> int:
    """A model misses after no fewer than ``places`` others since its last time."""
    count = 0
    for i, model in enumerate(asked):
        before = [j for j in range(i) if asked[j] == model]
        count += not before or len(set(asked[before[-1] + 1 : i])) >= places
    return count


@pytest.mark.parametrize("seed", range(20))
def test_misses_are_those_of_stack_distances(seed: int) -> None:
    r = random.Random(seed)
    asked = [r.randrange(6) for _ in range(60)]
    counts = [misses(asked, n) for n in range(1, 8)]
    assert counts == [by_hand(asked, n) for n in range(1, 8)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == len(set(asked))


def test_switching_is_a_copy_from_the_slow_level() -> None:
    size = 2 * EXPERT.parameters
    assert switch_seconds(size, HOST) == size / 64e9
    assert switch_seconds(size, HOST) / switch_seconds(size, NODE) == pytest.approx(15.6, rel=0.01)
    assert tiers(NODE)[0].name == "HBM"
    assert slots(NODE, size) == 40
    assert slots(NODE, size, reserved=39.9 * size) == 0
    with pytest.raises(NotApplicable, match="one memory for models"):
        tiers(device.load("a100-sxm"))


def test_a_request_is_the_sum_of_its_parts() -> None:
    found = request(EXPERT, NODE, prompt=64, output=3, miss_share=0.5)
    assert found.switch == switch_seconds(2 * EXPERT.parameters, NODE) / 2
    assert found.decode == pytest.approx(
        step_seconds(EXPERT, NODE, 1, 65) + step_seconds(EXPERT, NODE, 1, 66)
    )
    assert found.seconds == pytest.approx(
        found.router + found.switch + found.prefill + found.decode
    )
    # Decoding is bound by the weights, a long prompt by the products.
    assert step_seconds(EXPERT, NODE, 1, 1) > 2 * EXPERT.active_parameters / 12.8e12
    assert step_seconds(EXPERT, NODE, 4096, 4096) > 4096 * EXPERT.active_parameters / 2.552e15


def test_footprints_and_refusals() -> None:
    assert footprint(640e9, 640e9) == 1
    assert footprint(640e9 + 1, 640e9) == 2
    with pytest.raises(InputError, match="more than 0"):
        footprint(1, 0)
    with pytest.raises(NotApplicable, match="one model"):
        misses([1], 0)
    with pytest.raises(InputError, match="miss_share"):
        request(EXPERT, NODE, prompt=1, output=1, miss_share=2)
