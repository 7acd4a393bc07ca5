"""Data reuse on arrays: widening keeps all but the groups, one channel changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paredown import device
from paredown.cost.reuse import depthwise, reuse, sized, summary, widened
from paredown.cost.systolic import Layer, cost, passed
from paredown.errors import InputError


def layer(groups: int, inputs: int, outputs: int, kernel: int, out: int) -> Layer:
    weights = groups * inputs * outputs * kernel * kernel
    return Layer(
        "x", 1, groups, inputs, outputs, (kernel, kernel), (out, out), 2 * weights,
        2 * groups * inputs * out * out, 2 * groups * outputs * out * out,
    )  # fmt: skip


DEPTHWISE, POINTWISE = layer(96, 1, 1, 3, 14), layer(1, 96, 192, 1, 14)
ARRAY = device.load("row-stationary-64")


def test_widening_touches_depthwise_layers_alone() -> None:
    assert depthwise(DEPTHWISE)
    assert not depthwise(POINTWISE)
    assert widened([DEPTHWISE, POINTWISE], 1) == [DEPTHWISE, POINTWISE]
    wide, same = widened([DEPTHWISE, POINTWISE], 8)
    assert same == POINTWISE
    assert (wide.groups, wide.inputs, wide.outputs) == (12, 8, 8)
    assert wide.macs == 8 * DEPTHWISE.macs
    assert wide.weight_bytes == 8 * DEPTHWISE.weight_bytes
    assert (wide.input_bytes, wide.output_bytes) == (
        DEPTHWISE.input_bytes, DEPTHWISE.output_bytes,
    )  # fmt: skip
    # 64 does not divide 96: 48 does.
    assert widened([DEPTHWISE], 64)[0].inputs == 48
    with pytest.raises(InputError, match="at least one channel"):
        widened([DEPTHWISE], 0)


def test_reuse_by_hand() -> None:
    per_weight, per_value = reuse(DEPTHWISE)
    assert per_weight == 14 * 14
    assert per_value == pytest.approx(9 * 96 * 196 / (2 * 96 * 196))
    assert reuse(replace(DEPTHWISE, batch=4))[0] == 4 * per_weight
    assert reuse(widened([DEPTHWISE], 8)[0])[1] == pytest.approx(8 * per_value)


def test_summaries_add_up() -> None:
    both = summary([DEPTHWISE, POINTWISE], ARRAY)
    one, other = cost(DEPTHWISE, ARRAY), cost(POINTWISE, ARRAY)
    assert both.utilization == (one.utilization + other.utilization) / 2
    assert both.cycles == one.cycles + other.cycles
    assert both.seconds == one.seconds + other.seconds
    assert ARRAY.array is not None
    through = sum(passed(c.layer, ARRAY.array).total for c in (one, other))
    far = (one.traffic + other.traffic) / 2 * 206
    assert both.energy == pytest.approx(7 * both.macs + 6 * through + far)


def test_a_resized_array_has_its_peak() -> None:
    small = sized(ARRAY, 16)
    assert small.array is not None
    assert small.array.rows == small.array.columns == 16
    assert small.peak_macs_s["int16"] == 16 * 16 * 5e8
    assert small.levels == ARRAY.levels
    assert cost(POINTWISE, small).cycles > cost(POINTWISE, ARRAY).cycles
    with pytest.raises(InputError, match="no array"):
        sized(device.load("pi5"), 8)
