"""ConvFirst: the block in slices of its wide channels, and from a tile with its halo."""

import pytest
import torch
from nn_nets import with_statistics

from paredown import zoo
from paredown.errors import InputError
from paredown.zoo.convfirst import ConvFirstBlock


def block(inputs=16, outputs=16, **settings):
    torch.manual_seed(0)
    return with_statistics(ConvFirstBlock(inputs, outputs, **settings))


@pytest.mark.parametrize("slices", [1, 3, 64])
@pytest.mark.parametrize("settings", [{}, {"stride": 2}, {"outputs": 24, "group_size": 4}])
def test_slices_of_the_wide_channels_add_up(slices, settings):
    one, x = block(**settings), torch.randn(2, 16, 9, 7)
    with torch.inference_mode():
        torch.testing.assert_close(one.in_slices(x, slices), one(x), atol=1e-5, rtol=1e-4)


def test_a_tile_needs_one_pixel_of_halo_of_the_thin_input():
    one, x = block(), torch.randn(1, 16, 12, 12)
    with torch.inference_mode():
        tile = one(x[:, :, 2:9, 3:10])[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(tile, one(x)[:, :, 3:8, 4:9], atol=1e-5, rtol=1e-4)


def test_the_benchmark_shapes_are_in_the_network():
    with torch.device("meta"):
        net = zoo.create("convfirst", features_only=True).eval()
        maps = net(torch.empty(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)
    ]  # fmt: skip
    conv = net.stages[0][1].near.conv
    assert conv.in_channels // conv.groups == 8


def test_what_cannot_be_built_or_sliced_is_refused():
    with pytest.raises(InputError, match="groups of 8 channels do not divide 12"):
        ConvFirstBlock(12, 12)
    with pytest.raises(InputError, match="use at most 64"):
        block().in_slices(torch.zeros(1, 16, 4, 4), 65)
