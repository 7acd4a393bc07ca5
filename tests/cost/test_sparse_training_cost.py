"""A sparse training step on an array: what is counted, and what the array makes of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from paredown import device
from paredown.cost.sparse_training import products, share_of_macs, step
from paredown.cost.systolic import layers
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.workload import Workload


def network():
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(16, 128, 3, padding=1), nn.Conv2d(128, 256, 3, padding=1), nn.Flatten(2),
            nn.Linear(196, 512),
        ).to(torch.bfloat16)  # fmt: skip
        image = torch.empty(8, 16, 14, 14, dtype=torch.bfloat16)
    return layers(capture(Workload(model.eval(), (image,))))


def test_three_products_do_a_layer_s_work_each_and_two_shrink():
    for layer in network():
        for part in ((1, 1), (2, 4), (2, 8)):
            forward, by_input, by_weight = products(layer, part)
            assert forward.macs == by_input.macs == layer.macs * part[0] / part[1]
            assert by_weight.macs == layer.macs


def test_macs_of_a_step_are_the_formula():
    found, where = network(), device.load("sat-vcu1525")
    sparse = [x.name for x in found[1:]]
    for n, m in ((2, 4), (2, 8)):
        got = step(found, where, sparse, (n, m)).macs
        want = 2 * found[0].macs + sum(3 * share_of_macs(n, m) * x.macs for x in found[1:])
        assert got == pytest.approx(want)
    assert step(found, where).macs == 2 * found[0].macs + 3 * sum(x.macs for x in found[1:])


def test_sparse_steps_are_faster_but_never_beyond_their_work():
    found, where = network(), device.load("sat-vcu1525")
    dense = step(found, where)
    sparse = step(found, where, [x.name for x in found[1:]], (2, 8))
    assert 1.3 < dense.seconds / sparse.seconds < dense.macs / sparse.macs
    # An array starved of memory gains nothing by skipping work.
    slow = where.levels[-1].model_copy(update={"read_bytes_s": 1e6})
    starved = where.model_copy(update={"levels": (where.levels[0], slow)})
    gain = (
        step(found, starved).products_s
        / step(found, starved, [x.name for x in found[1:]], (2, 8)).products_s
    )
    assert gain < 1.3


def test_refusals():
    found, where = network(), device.load("sat-vcu1525")
    with pytest.raises(NotApplicable, match="1:16"):
        step(found, where, [found[1].name], (1, 16))
    with pytest.raises(NotApplicable, match="skips no zeros"):
        step(found, device.load("gemmini"), [found[1].name])
    with pytest.raises(NotApplicable, match="no array"):
        step(found, device.load("pi5"))
    with pytest.raises(InputError, match="nowhere"):
        step([replace(found[0])], where, ["nowhere"])
