"""Unlike accelerators: cycles by hand, schedules keep order, the heuristic beside all plans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from paredown.cost.heterogeneous import (
    TEMPLATES,
    Mapping,
    SubAccelerator,
    area,
    assigned,
    cycles_and_accesses,
    exhaustive,
    layer_cost,
    scheduled,
    within,
)
from paredown.cost.systolic import Layer
from paredown.errors import InputError, NotApplicable
from paredown.papers.cards.coexploration import drawn_layer


def conv(inputs: int, outputs: int, kernel: int, side: int) -> Layer:
    weights, pixels = inputs * outputs * kernel * kernel, side * side
    return Layer("c", 1, 1, inputs, outputs, (kernel, kernel), (side, side),
                 2 * weights, 2 * inputs * pixels, 2 * outputs * pixels)  # fmt: skip


def chip(*templates: str, elements: int = 256) -> list[SubAccelerator]:
    return [SubAccelerator(t, elements, 16e9) for t in templates]  # type: ignore[arg-type]


def test_cycles_by_hand() -> None:
    layer = conv(64, 8, 3, 16)
    shi, dla, rs = (cycles_and_accesses(layer, s)[0] for s in chip(*TEMPLATES))
    assert shi == 64 * 8 * 9  # 16 x 16 pixels are one tile
    assert dla == 2 * 9 * 256  # 64 channels x 4 filters at a time
    assert rs == 64 * 8 * 16 * 3  # 16 rows on 85 columns of three
    assert [cycles_and_accesses(conv(3, 8, 3, 17), s)[0] for s in chip("shi")] == [3 * 8 * 4 * 9]


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_element_does_more_than_one_product_a_cycle(template: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        layer, elements = drawn_layer(rng), int(rng.integers(1, 2000))
        (sub,) = chip(template, elements=elements)
        cycles, accesses = cycles_and_accesses(layer, sub)
        assert cycles * elements >= layer.macs
        assert accesses >= layer.output_bytes / 2
        cost = layer_cost(layer, sub)
        assert cost.seconds >= cycles / 1e9
        assert cost.energy > layer.macs


def test_each_template_has_layers_that_suit_it() -> None:
    early, late = conv(3, 16, 3, 32), conv(256, 256, 1, 4)
    shi, dla, _ = chip(*TEMPLATES, elements=1024)
    assert layer_cost(early, shi).seconds < layer_cost(early, dla).seconds
    assert layer_cost(late, dla).seconds < layer_cost(late, shi).seconds


def keeps_order(mapping: Mapping, chains: list[list[Layer]]) -> bool:
    """Layers of a network follow each other, and one at a time is on a sub-accelerator."""
    for n, chain in enumerate(chains):
        mine = sorted((s for s in mapping.slots if s.network == n), key=lambda s: s.layer)
        if [s.layer for s in mine] != list(range(len(chain))):
            return False
        if any(b.start < a.end for a, b in itertools.pairwise(mine)):
            return False
    for sub in {s.sub for s in mapping.slots}:
        mine = sorted((s for s in mapping.slots if s.sub == sub), key=lambda s: s.start)
        if any(b.start < a.end for a, b in itertools.pairwise(mine)):
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_the_heuristic_is_near_every_plan_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chains = [[drawn_layer(rng) for _ in range(n)] for n in (2, 3)]
    subs = chip(*rng.choice(TEMPLATES, 2, replace=False))
    fast, slow = exhaustive(chains, subs, 0.0), exhaustive(chains, subs)
    limit = (fast.seconds + slow.seconds) / 2
    exact, ours = exhaustive(chains, subs, limit), assigned(chains, subs, limit)
    assert keeps_order(ours, chains)
    assert keeps_order(exact, chains)
    assert ours.seconds <= limit
    assert exact.energy <= ours.energy * (1 + 1e-12)
    assert ours.energy <= 1.05 * exact.energy
    assert assigned(chains, subs, 0.0).seconds <= 1.1 * fast.seconds
    assert assigned(chains, subs).energy == pytest.approx(slow.energy)


def test_one_accelerator_runs_all_in_turn() -> None:
    chains = [[conv(8, 8, 3, 8)] * 2, [conv(8, 16, 1, 8)]]
    (sub,) = chip("rs")
    found = assigned(chains, [sub])
    assert found.seconds == pytest.approx(
        sum(layer_cost(x, sub).seconds for c in chains for x in c)
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="elements and bandwidth"):
        SubAccelerator("dla", 0, 1e9)
    with pytest.raises(NotApplicable, match="9 layers"):
        exhaustive([[conv(8, 8, 1, 4)] * 9], chip("dla"))
    with pytest.raises(InputError, match="each layer"):
        scheduled([[conv(8, 8, 1, 4)]], chip("dla"), ((0, 0),))
    with pytest.raises(InputError, match="sub-accelerators"):
        assigned([[conv(8, 8, 1, 4)]], [])
    assert within(chip("dla", "rs"), 512, 32e9)
    assert not within(chip("dla", "rs"), 511, 32e9)
    assert area(chip("dla")) == 256 + 16 * 16
