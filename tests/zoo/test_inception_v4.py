"""Inception: three resolutions of the stated sizes; residuals are scaled and linear."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.inception_v4 import Inception, residual_a, residual_line


@pytest.mark.parametrize("kind", ["v4", "resnet-v1", "resnet-v2"])
def test_feature_sizes_are_35_17_and_8_at_299(kind):
    with torch.device("meta"):
        net = Inception(kind, features_only=True, repeats=(1, 1, 1)).eval()
        shapes = [f.shape[-1] for f in net(torch.zeros(1, 3, 299, 299))]
        least = [f.shape[-1] for f in net(torch.zeros(1, 3, 75, 75))]
    assert shapes == [35, 17, 8]
    assert least == [7, 3, 1]


def test_five_ten_five_blocks_of_v2_count_as_the_catalogue_says():
    with torch.device("meta"):
        net = Inception("resnet-v2", repeats=(5, 10, 5))
    assert sum(p.numel() for p in net.parameters()) == 33_782_664


def test_a_residual_of_scale_nought_is_the_activation_of_its_input():
    torch.manual_seed(0)
    x = torch.randn(2, 24, 9, 9)
    block = residual_line(24, 7, 8, (8, 8, 8), 0.0)
    assert torch.equal(block(x), x.relu())
    linear = residual_line(24, 3, 8, (8, 8, 8), 0.0, act=False)
    assert torch.equal(linear(x), x)


def test_the_scale_multiplies_the_residual():
    torch.manual_seed(0)
    x = torch.rand(2, 16, 7, 7) + 5
    small, large = residual_a(16, (8, 8), 0.1).eval(), residual_a(16, (8, 8), 0.2).eval()
    large.load_state_dict(small.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(2 * (small(x) - x), large(x) - x, atol=1e-5, rtol=1e-4)


def test_what_it_refuses():
    with pytest.raises(UnknownName, match="resnet-v2"):
        Inception("resnet-v3")
    with torch.device("meta"), pytest.raises(InputError, match="at least 75"):
        Inception("v4", repeats=(1, 1, 1))(torch.zeros(1, 3, 74, 75))
