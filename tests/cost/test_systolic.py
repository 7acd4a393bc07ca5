"""Systolic arrays: utilisation in (0, 1], hand counts, and what depthwise layers cannot fill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from paredown import device, targets
from paredown.cost import systolic
from paredown.cost.systolic import Layer, cost, cycles, layers, moved, passed, traffic
from paredown.device import Array
from paredown.errors import NotApplicable
from paredown.graph.capture import capture
from paredown.workload import Workload

FLOWS = ("weight", "output", "row")


def conv(inputs: int, outputs: int, kernel: int, out: int, groups: int = 1) -> Layer:
    weights = groups * inputs * outputs * kernel * kernel
    return Layer(
        "conv", 1, groups, inputs, outputs, (kernel, kernel), (out, out), weights,
        groups * inputs * out * out, groups * outputs * out * out,
    )  # fmt: skip


def array(flow: str, side: int = 64) -> Array:
    return Array(rows=side, columns=side, clock_hz=1e9, dataflow=flow)


def share(layer: Layer, grid: Array) -> float:
    return layer.macs / (cycles(layer, grid) * grid.rows * grid.columns)


def test_one_tile_takes_its_fill_and_its_stream() -> None:
    # 64 windows by 64 filters: one tile, 28 x 28 pixels streamed through it.
    layer = conv(64, 64, 1, 28)
    assert cycles(layer, array("weight")) == 2 * 64 + 64 + 784 - 2
    # Output stationary: 784 pixels in 13 rows of tiles, the window streams.
    assert cycles(layer, array("output")) == 13 * (2 * 64 + 64 + 64 - 2)
    # Row stationary: 64 sets of 1 x 28 above each other and 2 beside, 4096 pairs, 28 cycles each.
    assert cycles(layer, array("row")) == 4096 // 128 * 28


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("side", [1, 3, 16, 64])
def test_utilisation_lies_in_0_to_1(flow: str, side: int) -> None:
    for layer in (
        conv(3, 32, 3, 112), conv(1, 1, 3, 112, 32), conv(1, 1, 7, 7, 96), conv(512, 512, 3, 14),
        conv(17, 63, 5, 13), conv(960, 320, 1, 7), conv(1, 1, 1, 1),
    ):  # fmt: skip
        assert 0 < share(layer, array(flow, side)) <= 1


def test_wide_layers_fill_a_row_stationary_array_and_depthwise_ones_do_not() -> None:
    grid = array("row")
    assert share(conv(256, 256, 3, 64), grid) > 0.95
    assert share(conv(1, 1, 3, 64, 256), grid) < 0.06


def test_depthwise_utilisation_grows_with_channels_per_group_until_the_array_is_full() -> None:
    for side in (16, 32, 64):
        grid = array("row", side)
        shares = [share(conv(g, g, 3, 14, 512 // g), grid) for g in (1, 2, 4, 8, 16, 32, 64)]
        assert shares == sorted(shares)
        assert shares[-1] > 0.7
    # A small array is filled sooner: less is to be gained there.
    gains = [
        share(conv(8, 8, 3, 14, 64), array("row", s))
        / share(conv(1, 1, 3, 14, 512), array("row", s))
        for s in (16, 64)
    ]
    assert gains[0] < gains[1]


def test_traffic_is_compulsory_where_a_side_fits_and_repeats_the_cheaper_one_where_not() -> None:
    layer = replace(conv(1, 1, 1, 1), weight_bytes=1000, input_bytes=300, output_bytes=10)
    assert traffic(layer, 300) == 1310
    assert traffic(layer, 299) == 1310 + min(1 * 1000, 3 * 300)
    assert traffic(layer, 100) == 1310 + min(2 * 1000, 9 * 300)


def test_the_parts_of_traffic_add_up() -> None:
    layer = replace(conv(1, 1, 1, 1), weight_bytes=1000, input_bytes=300, output_bytes=10)
    for buffer in (100, 299, 300):
        assert moved(layer, buffer).total == traffic(layer, buffer)
    assert moved(layer, 299).inputs == 4 * 300  # cheaper than the weights once more


def loops(layer: Layer, grid: Array) -> tuple[int, int, int]:
    """Numbers between buffer and array, counted fold by fold: weights, inputs, sums."""
    pixels, window = layer.out[0] * layer.out[1], layer.inputs * layer.kernel[0] * layer.kernel[1]
    weights = inputs = sums = 0
    over, held = (window, pixels) if grid.dataflow == "weight" else (pixels, window)
    for _ in range(layer.groups):
        for k in range(0, layer.outputs, grid.columns):
            filters = min(grid.columns, layer.outputs - k)
            for at in range(0, over, grid.rows):
                rows = min(grid.rows, over - at)
                inputs += rows * held
                weights += filters * (rows if grid.dataflow == "weight" else held)
                results = filters * (held if grid.dataflow == "weight" else rows)
                # Sums that another fold began come back before they go out again.
                sums += results * (2 if grid.dataflow == "weight" and at else 1)
    return weights, inputs, sums


@pytest.mark.parametrize("flow", ["weight", "output"])
@pytest.mark.parametrize("side", [1, 3, 16])
def test_what_passes_to_the_array_is_what_the_folds_read_and_write(flow: str, side: int) -> None:
    for layer in (conv(3, 8, 3, 6), conv(1, 1, 3, 7, 5), conv(17, 19, 1, 4), conv(1, 1, 1, 1)):
        found = passed(layer, array(flow, side))
        assert (found.weights, found.inputs, found.outputs) == loops(layer, array(flow, side))


def test_rows_pass_what_their_elements_share() -> None:
    layer = conv(64, 64, 3, 14)
    found = passed(layer, array("row", 14))
    assert found.inputs == layer.macs / (9 * 16)
    assert found.weights == layer.macs / (14 * 14)
    assert found.outputs == 2 * layer.macs / (9 * 4) - 64 * 14 * 14
    # One input channel is summed at once: sums leave once.
    assert passed(conv(1, 8, 3, 14), array("row", 14)).outputs == 8 * 14 * 14
    # Four strips of a tall image lie above each other and read the same weights.
    tall = conv(64, 64, 3, 56)
    assert passed(tall, array("row", 14)).weights == tall.macs / (56 * 56)


@pytest.mark.parametrize("name", ["mobilenetv2", "vit-s"])
def test_the_layers_of_a_network_have_its_macs(name: str) -> None:
    graph = capture(targets.resolve(f"zoo:{name}"))
    found = layers(graph)
    inside = sum(x.macs for x in found)
    # Fused attention is no single product; everything else is there.
    attention = sum(n.macs or 0 for n in graph.nodes if "attention" in n.op)
    assert inside == graph.macs - attention
    assert len(systolic.left_out(graph)) == (1 if attention else 0)


def test_a_linear_layer_is_bound_by_its_weights_on_the_tpu() -> None:
    model = nn.Linear(2048, 2048, bias=False)
    graph = capture(Workload(model.eval(), (torch.zeros(1, 2048),)))
    tpu = device.load("tpu-v1")
    (found,) = systolic.costs(graph, tpu)
    assert found.seconds == pytest.approx(found.traffic / 34e9)
    assert found.utilization < 0.01
    wide = capture(Workload(model, (torch.zeros(4096, 2048),)))
    assert systolic.costs(wide, tpu)[0].utilization > 0.8


def test_a_device_without_an_array_is_refused() -> None:
    with pytest.raises(NotApplicable, match="pi5 states no array"):
        cost(conv(1, 1, 1, 1), device.load("pi5"))
