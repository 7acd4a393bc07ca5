"""An array of processing elements: the formula and the loop, memories, sizing."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.cost.element_array import (
    ElementArray,
    Layer1d,
    cost,
    counted_cycles,
    cycles,
    smallest,
)
from paredown.errors import InputError

LAYERS = [Layer1d(1, 8, 5, 22, 2), Layer1d(8, 16, 5, 9, 2), Layer1d(16, 2, 9, 1)]


def test_the_formula_is_the_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        layer = Layer1d(*(int(rng.integers(1, 9)) for _ in range(4)))
        array = ElementArray(int(rng.integers(1, 7)), int(rng.integers(1, 7)), 99, 99, 1e8,
                             int(rng.integers(0, 9)))  # fmt: skip
        assert cycles(layer, array) == counted_cycles(layer, array)


def test_by_hand() -> None:
    array = ElementArray(4, 8, 1000, 200, 1e8, fill=3)
    assert cycles(LAYERS[1], array) == 4 * 5 * 9 + 3
    found = cost(LAYERS, array)
    assert found.cycles == 2 * 22 + 180 + 18 + 3 * 3
    assert found.seconds == pytest.approx(found.cycles / 1e8)
    assert found.utilization == pytest.approx(sum(x.macs for x in LAYERS) / found.cycles / 32)
    assert found.weights_over == (40 + 32) + (640 + 64) + (288 + 8) - 1000
    assert found.features_over == 8 * 21 + 16 * 9 - 200
    assert not found.fits


def test_the_smallest_array_keeps_to_the_time() -> None:
    found = smallest(LAYERS, 5e-6, clock_hz=1e8)
    assert found is not None
    assert cost(LAYERS, found).seconds <= 5e-6
    assert cost(LAYERS, found).fits
    for elements in (1, 2, 4, 8, 16, 32, 64):
        for units in (1, 2, 4, 8, 16, 32, 64):
            if elements * units < found.elements * found.units:
                other = ElementArray(elements, units, 9999, 9999, 1e8)
                assert cost(LAYERS, other).seconds > 5e-6
    assert smallest(LAYERS, 1e-9, clock_hz=1e8) is None
    with pytest.raises(InputError, match="elements"):
        ElementArray(0, 1, 1, 1, 1e8)
    with pytest.raises(InputError, match="clock"):
        ElementArray(1, 1, 1, 1, 0)
