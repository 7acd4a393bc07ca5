"""UniRepLKNet: the merged network equals the branched one, and has the published size."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.nn import reparameterise
from paredown.zoo.unireplknet import UniRepLKNet, unireplknet


def lively(net, seed=0):
    """A network in evaluation mode whose norms, scales and response norms are not trivial."""
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.3)
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    for name, p in net.named_parameters():
        if name.endswith(("gamma", "beta")):
            p.data.uniform_(-1, 1)
    return net.eval()


@pytest.mark.parametrize("size", [(37, 41), (32, 32), (5, 9)])
def test_merged_network_equals_the_branched_one(size):
    net = lively(UniRepLKNet((12, 16), ((3, 7), (13, 17)), 5, 1))
    merged = reparameterise(net)
    x = torch.randn(2, 1, *size)
    with torch.inference_mode():
        torch.testing.assert_close(merged(x), net(x), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in merged.modules())


def test_merging_gives_the_published_network():
    net = unireplknet("a").eval()
    shapes = {k: v.shape for k, v in unireplknet("a", merged=True).state_dict().items()}
    assert {k: v.shape for k, v in reparameterise(net).state_dict().items()} == shapes


def test_a_branched_network_is_left_as_it_was():
    net = lively(UniRepLKNet((12,), ((13,),), 5, 1))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    reparameterise(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_names_and_kernels_are_checked():
    with pytest.raises(UnknownName, match="xl"):
        unireplknet("xxl")
    with pytest.raises(InputError, match="kernels are"):
        UniRepLKNet((12,), ((4,),))
