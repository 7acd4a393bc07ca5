"""TVConv: constant kernels, the unrolled form, stride, and folding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.nn import InvertedResidual
from paredown.nn.reparam import reparameterise
from paredown.nn.tvconv import FixedVariantConv, TranslationVariantConv, vary


def moved(layer):
    """The layer with affinity maps that differ from pixel to pixel."""
    with torch.no_grad():
        layer.affinity.add_(torch.randn_like(layer.affinity))
    return layer


@pytest.mark.parametrize(("size", "kernel", "stride"), [((7, 5), 3, 1), ((4, 3), 5, 2)])
def test_it_equals_its_unrolled_form(size, kernel, stride):
    torch.manual_seed(0)
    layer = moved(TranslationVariantConv(6, size, kernel, stride=stride))
    h, w = ((s - 1) * stride + 1 for s in size)
    x = torch.randn(3, 6, h, w)
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    patches = patches.reshape(3, 6, kernel**2, *size)
    torch.testing.assert_close(layer(x), (patches * layer.kernels()).sum(2), atol=1e-5, rtol=1e-5)


def test_kernels_folded_to_constants_equal_the_generator():
    torch.manual_seed(0)
    layer = moved(TranslationVariantConv(4, (6, 6)))
    x = torch.randn(2, 4, 6, 6)
    fixed = layer.fuse()
    assert fixed.weight.shape == (1, 4, 9, 6, 6)
    torch.testing.assert_close(fixed(x), layer(x), atol=1e-6, rtol=1e-6)


def test_kernels_constant_over_space_are_a_depthwise_convolution():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(4, 9)
    for stride, size in ((1, (9, 8)), (2, (5, 4))):
        kernels = weight.reshape(1, 4, 9, 1, 1).expand(1, 4, 9, *size)
        plain = F.conv2d(x, weight.reshape(4, 1, 3, 3), padding=1, stride=stride, groups=4)
        ours = FixedVariantConv(kernels, stride)(x)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_depthwise_layers_of_a_model_become_variant_and_fold_again():
    torch.manual_seed(0)
    model = nn.Sequential(InvertedResidual(8, 8, expand=2), InvertedResidual(8, 16, stride=2))
    x = torch.randn(2, 8, 11, 9)
    variant = vary(model, x)
    layers = [m for m in variant.modules() if isinstance(m, TranslationVariantConv)]
    assert [m.size for m in layers] == [(11, 9), (6, 5)]
    assert variant.training
    assert not any(isinstance(m, TranslationVariantConv) for m in model.modules())
    variant(x).square().mean().backward()
    assert all(m.affinity.grad is not None and m.affinity.grad.abs().sum() > 0 for m in layers)
    fixed = reparameterise(variant)
    assert sum(isinstance(m, FixedVariantConv) for m in fixed.modules()) == 2
    torch.testing.assert_close(fixed(x), variant.eval()(x), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="odd"):
        TranslationVariantConv(4, (6, 6), 2)
    with pytest.raises(InputError, match="no depthwise"):
        vary(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match="do not fit"):
        TranslationVariantConv(4, (6, 6))(torch.randn(1, 4, 7, 6))
