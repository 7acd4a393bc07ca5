"""The inverted residual block: its slices equal the whole, its skips stand where they should."""

import pytest
import torch

from paredown.errors import InputError
from paredown.nn import InvertedResidual, SlicedInvertedResidual
from paredown.nn.conv import round_channels


def trained_like(block):
    """A block in eval mode whose norms are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for m in block.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5, generator=generator)
            m.bias.data.normal_(0, 0.2, generator=generator)
            m.running_mean.normal_(0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    return block.eval()


@pytest.mark.parametrize(
    ("inputs", "outputs", "expand", "stride", "slices"),
    [(8, 8, 6, 1, 3), (8, 12, 6, 2, 5), (16, 16, 1, 1, 4), (7, 7, 3, 1, 21), (8, 8, 6, 1, 1)],
)
def test_slices_equal_the_whole_block(inputs, outputs, expand, stride, slices):
    torch.manual_seed(0)
    block = trained_like(InvertedResidual(inputs, outputs, expand=expand, stride=stride))
    x = torch.randn(2, inputs, 17, 9)
    before = x.clone()
    with torch.inference_mode():
        whole, sliced = block(x), SlicedInvertedResidual(block, slices)(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(sliced, whole, atol=1e-5, rtol=1e-5)


def test_what_is_no_sum_over_channels_is_not_sliced():
    with pytest.raises(InputError, match="linear"):
        SlicedInvertedResidual(InvertedResidual(8, 8, linear=False), 2)
    with pytest.raises(InputError, match="wide"):
        SlicedInvertedResidual(InvertedResidual(8, 8, skip="wide"), 2)
    with pytest.raises(InputError, match=r"1\.\.48"):
        SlicedInvertedResidual(InvertedResidual(8, 8), 49)


def test_thin_skip_adds_the_input():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 5, 5)
    block = trained_like(InvertedResidual(8, 8))
    plain = trained_like(InvertedResidual(8, 8, skip="none"))
    plain.load_state_dict(block.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(block(x), plain(x) + x)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(32 * 0.35, 16), (24 * 0.35, 8), (44.8, 48), (3, 8), (160 * 1.4, 224)]
)
def test_channels_are_never_rounded_down_by_more_than_a_tenth(channels, rounded):
    assert round_channels(channels) == rounded
    assert round_channels(channels) >= 0.9 * channels
