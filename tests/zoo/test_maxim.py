"""MAXIM: views invert, both mixings reach what they should, counts, images at every scale."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.zoo._gmlp import AxisLinear, CrossGate, MultiAxisGmlp, from_cells, to_cells
from paredown.zoo.maxim import MAXIM, at_scale, maxim, resized, restoration_loss


def small(**settings):
    torch.manual_seed(0)
    return MAXIM(4, **{"stages": 2, "groups": 1, "bottlenecks": 1, "sizes": (4, 4, 2), **settings})


@pytest.mark.parametrize("cell", [(2, 3), (4, 1), (8, 12)])
def test_cells_and_maps_invert_each_other(cell):
    x = torch.randn(2, 8, 12, 3)
    cells = to_cells(x, *cell)
    assert torch.equal(from_cells(cells, *cell, 8, 12), x)
    assert torch.equal(cells[:, 0], x[:, : cell[0], : cell[1]].flatten(1, 2))


@pytest.mark.parametrize("axis", ["grid", "block"])
def test_a_pixel_reaches_its_block_or_its_place_in_every_cell(axis):
    x = torch.zeros(1, 12, 8, 2)
    x[0, 5, 6, 1] = 1
    mix = AxisLinear(axis, 4)
    torch.nn.init.ones_(mix.weight)
    reached = mix(x)[0, :, :, 1].detach()
    wanted = torch.zeros(12, 8)
    if axis == "block":
        wanted[4:8, 4:8] = 1
    else:
        wanted[2::3, 0::2] = 1
    assert torch.equal(reached, wanted)
    assert not mix(x)[..., 0].any()


def test_left_out_mixing_reaches_no_further():
    torch.manual_seed(0)
    x = torch.zeros(1, 16, 16, 4)
    x[0, 5, 6] = torch.tensor([1.0, -1, 2, 0])
    found = {}
    for axes in (("block",), ("grid",), ("grid", "block")):
        net = MultiAxisGmlp(4, 4, axes=axes)
        moved = (net(x) - net(torch.zeros_like(x))).abs().sum(-1)[0] > 1e-7
        found[axes] = moved
    assert found["block",].nonzero().tolist() == [[i, j] for i in range(4, 8) for j in range(4, 8)]
    places = [[i, j] for i in (1, 5, 9, 13) for j in (2, 6, 10, 14)]
    assert found["grid",].nonzero().tolist() == places
    assert torch.equal(found["grid", "block"], found["block",] | found["grid",])


def test_a_new_cross_gate_is_near_open():
    """Biases of the gating maps start at one, so both signals reach the sum."""
    gate = CrossGate((4, 6), 8, 2)
    assert torch.equal(gate.gate_x.grid.bias, torch.ones(4))
    x, y = gate(torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 6))
    assert x.shape == y.shape == (1, 4, 4, 8)


@pytest.mark.parametrize(("variant", "three"), [("s1", 6_139_561), ("m1", 19_464_265)])
def test_parameters_as_trained_with_three_scales(variant, three):
    with torch.device("meta"):
        net = maxim(variant, scales=3)
    assert sum(p.numel() for p in net.parameters()) == three


def test_the_work_is_linear_in_pixels():
    def work(*size):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            small().eval()(torch.zeros(1, 3, *size))
        return counter.get_total_flops()

    one, two, four = work(16, 16), work(16, 32), work(32, 32)
    # Channel attention reads one mean per map, whatever the size.
    fixed = 2 * one - two
    assert 0 < fixed < 0.02 * one
    assert four - fixed == 4 * (one - fixed)


def test_shrinking_smooths_and_the_small_images_are_the_nearest_pixels():
    line = torch.arange(8.0) ** 2
    x = line[None, :, None, None].expand(1, 8, 8, 1)
    shrunk = resized(x, (4, 4))[0, :, 2, 0]
    inside = [(line[i] + 3 * line[i + 1] + 3 * line[i + 2] + line[i + 3]) / 8 for i in (1, 3)]
    torch.testing.assert_close(shrunk[1:3], torch.stack(inside))
    assert resized(x, (8, 8)) is x
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert at_scale(image, 0) is not None
    assert at_scale(image, 1)[0, 0, 0].tolist() == [9, 11, 13, 15]
    assert at_scale(image, 2)[0, 0].tolist() == [[18, 22], [50, 54]]


def test_every_stage_and_scale_answers_in_training():
    net, x = small(scales=3), torch.randn(1, 3, 32, 16)
    found = net.train()(x)
    sides = [(8, 4), (16, 8), (32, 16)]
    assert [tuple(f.shape[2:]) for f in found] == sides * 2
    loss = restoration_loss(found, x, scales=3)
    loss.backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(x), found[-1])
    perfect = [at_scale(x, s) for s in (2, 1, 0)] * 2
    assert restoration_loss(perfect, x, scales=3) == pytest.approx(6e-3, rel=1e-4)


def test_what_it_refuses():
    with torch.device("meta"):
        net = zoo.create("maxim-s1")
        with pytest.raises(InputError, match="multiples of 64"):
            net(torch.empty(1, 3, 96, 64))
    with pytest.raises(InputError, match="1 to 3 scales"):
        maxim("s1", scales=4)
    with pytest.raises(UnknownName, match="s1"):
        maxim("l1")
