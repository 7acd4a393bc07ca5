"""LSNet: folding is lossless, dynamic kernels are shared as stated, sizes are fixed."""

import pytest
import torch
from zoo_nets import lively

from paredown.errors import InputError, UnknownName
from paredown.nn import reparameterise
from paredown.zoo.lsnet import LSConv, LSNet, OffsetAttention, RepDepthwise, lsnet


def small(**settings):
    torch.manual_seed(0)
    return LSNet((16, 16, 24, 32), (1, 2, 2, 2), 5, 1, image_size=64, num_heads=2, **settings)


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (1, 3)])
def test_the_folded_mixer_equals_its_branches(size):
    mixer = lively(RepDepthwise(6))
    x = torch.randn(2, 6, *size)
    with torch.inference_mode():
        torch.testing.assert_close(mixer.fuse()(x), mixer(x), atol=1e-5, rtol=1e-5)


def test_the_folded_network_equals_the_branched_one():
    net = lively(small())
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(reparameterise(net)(x), net(x), atol=1e-4, rtol=1e-4)


def test_eight_channels_share_a_kernel():
    conv = LSConv(32)
    assert conv.kernels(torch.randn(2, 32, 7, 5)).shape == (2, 4, 9, 7, 5)


def test_attention_sees_offsets_by_their_size_alone():
    attention = OffsetAttention(32, 2, 3)
    index = attention.index
    assert index[0, 4] == index[4, 0] == index[8, 4] == 4
    assert index.max() == 8
    assert torch.equal(index.diagonal(), torch.zeros(9, dtype=torch.long))


def test_features_and_sizes():
    shapes = [tuple(f.shape[1:]) for f in small(features_only=True)(torch.zeros(2, 1, 64, 64))]
    assert shapes == [(16, 8, 8), (16, 4, 4), (24, 2, 2), (32, 1, 1)]
    with pytest.raises(InputError, match="64x64"):
        small()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UnknownName, match="t"):
        lsnet("xl")
    with pytest.raises(InputError, match="stride"):
        small(stem_stride=2)
