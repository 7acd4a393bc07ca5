"""SimpleNet: the printed 5.48M are the weights alone; every size down to the last pool's."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.simplenet import SimpleNet, simplenet


def test_the_printed_count_leaves_out_norms_and_convolution_biases():
    with torch.device("meta"):
        net = simplenet("cifar-5m")
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert weights + net.head.bias.numel() == 5_484_746


def test_thirteen_convolutions_of_which_two_are_pointwise():
    with torch.device("meta"):
        convs = [m for m in simplenet().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 13
    assert [c.kernel_size for c in convs].count((1, 1)) == 2


@pytest.mark.parametrize(("strides", "least"), [((), 4), ((2, 2), 13)])
def test_the_least_size_is_taken_and_one_less_refused(strides, least):
    net = SimpleNet(((8, 8), (8,), (-16, 8)), 3, 1, strides=strides).eval()
    assert net.least == least
    assert net(torch.zeros(1, 1, least, least)).shape == (1, 3)
    with pytest.raises(InputError, match=f"at least {least}"):
        net(torch.zeros(1, 1, least - 1, least))


def test_features_are_the_groups():
    net = SimpleNet(((8,), (12,), (16,)), 3, 1, features_only=True)
    assert [f.shape[1] for f in net(torch.zeros(1, 1, 8, 8))] == [8, 12, 16]


def test_names_and_groups_are_checked():
    with pytest.raises(UnknownName, match="cifar-5m"):
        simplenet("cifar-5")
    with pytest.raises(InputError, match="every group"):
        SimpleNet(((8,), ()))
