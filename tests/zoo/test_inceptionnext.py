"""InceptionNeXt's token mixer is one dense depthwise convolution with zero-padded kernels."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.inceptionnext import InceptionDepthwise, InceptionNeXt, inceptionnext


@pytest.mark.parametrize(("channels", "share", "band"), [(16, 0.125, 11), (40, 0.25, 9)])
def test_mixer_equals_one_dense_depthwise_convolution(channels, share, band):
    torch.manual_seed(0)
    mixer = InceptionDepthwise(channels, share=share, band=band)
    x = torch.randn(2, channels, 17, 13)
    with torch.inference_mode():
        torch.testing.assert_close(mixer.dense()(x), mixer(x), atol=1e-5, rtol=1e-5)


def test_identity_channels_pass_untouched():
    mixer = InceptionDepthwise(24)
    x = torch.randn(1, 24, 5, 5)
    assert torch.equal(mixer(x)[:, :15], x[:, :15])


def test_features_of_four_strides_and_the_sizes_it_takes():
    net = InceptionNeXt((1, 1, 1, 1), (16, 16, 24, 32), 5, 1, features_only=True)
    shapes = [tuple(f.shape[1:]) for f in net(torch.zeros(1, 1, 71, 32))]
    assert shapes == [(16, 17, 8), (16, 8, 4), (24, 4, 2), (32, 2, 1)]
    with pytest.raises(InputError, match="at least 32"):
        net(torch.zeros(1, 1, 31, 64))


def test_what_it_is_not():
    with pytest.raises(UnknownName, match="tiny"):
        inceptionnext("tinny")
    with pytest.raises(InputError, match="three branches"):
        InceptionDepthwise(4)
