"""Binary convolutions: integers as their columns give them, the gradient, the training term."""

import numpy as np
import pytest
import torch

from paredown.errors import InputError
from paredown.nn.binary import BinaryConv2d, sign
from paredown.runtime import binary
from paredown.runtime import binary_tree as trees


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_integers_are_those_of_the_tree_and_of_popcounts(kernel, stride):
    torch.manual_seed(0)
    conv = BinaryConv2d(7, 12, kernel, stride)
    x = torch.randn(2, 7, 9, 8)
    x[0, 0, 0] = 0
    with torch.no_grad():
        direct = conv.integers(x).permute(0, 2, 3, 1).flatten(0, 2).numpy()
        columns = conv.columns(x).numpy().astype(np.int8)
        weight = conv.weight.numpy().reshape(12, -1)
    tree = trees.spanning_tree(weight)
    assert np.array_equal(trees.products(tree, weight, columns), direct)
    n = columns.shape[1]
    rows, channels = (torch.from_numpy(t).float() for t in (columns, weight))
    a, w = (binary.pack_signs(t, torch.zeros(n)) for t in (rows, channels))
    assert np.array_equal(binary.binary_product(a, w, n).numpy(), direct)


def test_the_term_counts_distances_and_pulls_towards_the_centre():
    torch.manual_seed(0)
    conv = BinaryConv2d(4, 6)
    differ = (sign(conv.weight.detach()) != conv.centre).sum()
    assert float(conv.spread().detach()) == float(differ)
    conv.spread().backward()
    inside = conv.weight.detach().abs() <= 1
    wanted = torch.where(inside, -conv.centre / 2, torch.zeros(()))
    assert torch.equal(conv.weight.grad, wanted)


def test_a_sign_is_never_zero_and_its_gradient_ends_at_one():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    y = sign(x)
    assert y.tolist() == [-1, -1, 1, 1, 1]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_bad_geometry_is_refused():
    with pytest.raises(InputError, match="positive sizes"):
        BinaryConv2d(0, 3)
