"""FFNet: folding branches and skips is lossless and leaves fewer operators."""

import pytest
import torch
from zoo_nets import lively

from paredown.errors import InputError, UnknownName
from paredown.nn import reparameterise
from paredown.zoo.ffnet import FFNet, NormedSkip, depthwise, ffnet


def small(**settings):
    torch.manual_seed(0)
    return FFNet(
        (8, 16, 16, 32), (1, 1, 1, 1), 5, 1, mixers=(3, 3, 7, 7), kernel=7, stem=8, **settings
    )


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (17, 5)])
@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_the_folded_network_equals_the_trained_one(size, scale):
    net = lively(small(scale=scale))
    folded = reparameterise(net)
    x = torch.randn(2, 1, *size)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), net(x), atol=1e-4, rtol=1e-4)
    count = sum(1 for m in net.modules() if not list(m.children()))
    assert sum(1 for m in folded.modules() if not list(m.children())) < 0.75 * count
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == [folded.norm]


def test_a_strided_two_branch_convolution_that_doubles_the_channels_folds():
    conv = lively(depthwise(4, 8, 7, stride=2))
    x = torch.randn(2, 4, 15, 10)
    with torch.inference_mode():
        torch.testing.assert_close(conv.fuse()(x), conv(x), atol=1e-5, rtol=1e-5)


def test_the_skip_folds_into_its_convolution():
    skip = lively(NormedSkip(6))
    x = torch.randn(2, 6, 3, 5)
    with torch.inference_mode():
        torch.testing.assert_close(skip.fuse()(x), skip(x), atol=1e-5, rtol=1e-5)


def test_folding_gives_the_published_count():
    with torch.device("meta"):
        folded, trained = ffnet("1", folded=True), ffnet("1")
    assert sum(p.numel() for p in folded.parameters()) == 13_660_152
    assert sum(p.numel() for p in trained.parameters()) == 13_775_656


def test_features_and_names():
    shapes = [tuple(f.shape[1:]) for f in small(features_only=True)(torch.zeros(1, 1, 33, 64))]
    assert shapes == [(8, 9, 16), (16, 5, 8), (16, 3, 4), (32, 2, 2)]
    with pytest.raises(UnknownName, match="4"):
        ffnet("5")
    with pytest.raises(InputError, match="multiple"):
        FFNet((8, 12, 16, 32), (1, 1, 1, 1))
