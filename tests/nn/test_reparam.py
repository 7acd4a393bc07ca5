"""Branches equal their fused kernel (evaluation mode), to rounding."""

import pytest
import torch
import torch.nn.functional as F
from nn_nets import with_statistics
from torch import nn

from paredown.errors import InputError
from paredown.nn import DilatedReparamConv, RepConv, reparameterise
from paredown.nn.reparam import fold_norm, grown_kernel, identity_kernel


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "groups"),
    [(6, 6, 3, 1, 1), (6, 6, 3, 1, 3), (6, 9, 3, 2, 3), (4, 4, 5, 1, 4), (4, 4, 1, 1, 2)],
)
def test_rep_conv_equals_its_fused_form(inputs, outputs, kernel, stride, groups):
    torch.manual_seed(0)
    block = with_statistics(RepConv(inputs, outputs, kernel, stride=stride, groups=groups))
    fused = block.fuse()
    x = torch.randn(2, inputs, 9, 7)
    assert isinstance(fused, nn.Conv2d)
    torch.testing.assert_close(fused(x), block(x), atol=1e-5, rtol=1e-5)


def test_dilated_branches_equal_one_large_kernel():
    torch.manual_seed(0)
    branches = ((5, 1), (7, 2), (3, 4), (3, 5), (3, 6))
    block = with_statistics(DilatedReparamConv(4, 13, branches))
    x = torch.randn(1, 4, 17, 15)
    torch.testing.assert_close(block.fuse()(x), block(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="do not fit"):
        DilatedReparamConv(4, 7, ((5, 2),))


def test_a_whole_model_is_fused_on_a_copy():
    torch.manual_seed(0)
    model = with_statistics(nn.Sequential(RepConv(3, 8), nn.ReLU(), nn.Sequential(RepConv(8, 8))))
    x = torch.randn(1, 3, 8, 8)
    fused = reparameterise(model)
    assert not any(isinstance(m, RepConv) for m in fused.modules())
    assert isinstance(model[0], RepConv)
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)


def test_folded_norm_and_grown_kernel():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3), with_statistics(nn.BatchNorm2d(5))
    x = torch.randn(2, 3, 9, 9)
    weight, bias = fold_norm(conv.weight, conv.bias, norm)
    torch.testing.assert_close(F.conv2d(x, weight, bias), norm(conv(x)), atol=1e-5, rtol=1e-5)
    dilated = F.conv2d(x, conv.weight, padding=2, dilation=2)
    torch.testing.assert_close(
        F.conv2d(x, grown_kernel(conv.weight, 7, 2), padding=3), dilated, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(F.conv2d(x, identity_kernel(3, 1, 3), padding=1), x)
