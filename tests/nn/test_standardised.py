"""Weight standardisation's moments, its fold, and batch-channel norm's two halves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.nn import ConvNormAct
from paredown.nn.norm import replace_norms
from paredown.nn.standardised import (
    BatchChannelNorm2d,
    EstimatedBatchNorm2d,
    StandardisedConv2d,
    standardise,
)


def test_filters_have_zero_mean_and_unit_variance_and_fold():
    torch.manual_seed(0)
    conv = StandardisedConv2d(6, 8, 3, stride=2, padding=1, groups=2)
    with torch.no_grad():
        conv.weight.mul_(3).add_(1)
    flat = conv.standardised().flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(8), atol=1e-6, rtol=0)
    raw = conv.weight.flatten(1).var(1)
    torch.testing.assert_close(flat.var(1), raw / (raw + 1e-5), atol=1e-6, rtol=0)
    assert flat.var(1).min() > 0.999
    x = torch.randn(2, 6, 9, 9)
    plain = conv.fuse()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), conv(x), atol=1e-6, rtol=1e-6)


def test_gradients_are_orthogonal_to_the_mean_and_the_scale_of_a_filter():
    """Adding a constant to a filter, or scaling it, changes nothing: so the gradient has no part
    along either (equations 8 to 10)."""
    torch.manual_seed(0)
    conv = StandardisedConv2d(3, 4, 3, eps=0.0).double()
    conv(torch.randn(2, 3, 8, 8).double()).square().sum().backward()
    grad, weight = conv.weight.grad.flatten(1), conv.weight.detach().flatten(1)
    size = grad.norm(dim=1)
    assert size.min() > 0
    assert (grad.sum(1).abs() / size).max() < 1e-9
    assert ((grad * weight).sum(1).abs() / size).max() < 1e-9


def test_a_model_is_standardised_on_a_copy():
    torch.manual_seed(0)
    model = nn.Sequential(ConvNormAct(3, 8, 3), nn.Conv2d(8, 8, 1, groups=8))
    new = standardise(model)
    assert isinstance(new[0].conv, StandardisedConv2d)
    assert type(new[1]) is nn.Conv2d, "a filter of one weight is left alone"
    assert type(model[0].conv) is nn.Conv2d
    assert new.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(InputError, match="one weight"):
        StandardisedConv2d(4, 4, 1, groups=4)


def test_batch_channel_norm_without_moving_is_group_norm():
    torch.manual_seed(0)
    norm = BatchChannelNorm2d(8, 4, speed=0.0, eps=1e-5).train()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    x = torch.randn(2, 8, 5, 7)
    plain = F.group_norm(
        x, 4, norm.weight.repeat_interleave(2), norm.bias.repeat_interleave(2), 1e-5
    )
    torch.testing.assert_close(norm(x), plain, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="do not divide"):
        BatchChannelNorm2d(8, 3)


def test_estimates_move_by_the_old_mean_and_take_no_gradient():
    torch.manual_seed(0)
    norm = EstimatedBatchNorm2d(2, speed=0.25)
    norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    x = (torch.randn(1, 2, 4, 4) + 2).requires_grad_()
    old = norm.running_mean.clone()
    out = norm(x)
    mean = x.detach().mean((0, 2, 3))
    square = (x.detach() - old.reshape(1, 2, 1, 1)).square().mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, old + 0.25 * (mean - old))
    torch.testing.assert_close(norm.running_var, 1 + 0.25 * (square - 1))
    # Constants: the gradient of the sum is the plain scale, as in evaluation mode.
    out.sum().backward()
    scale = torch.rsqrt(norm.running_var + norm.eps).reshape(1, 2, 1, 1).expand_as(x)
    torch.testing.assert_close(x.grad, scale)
    torch.testing.assert_close(norm.eval()(x), out.detach(), atol=1e-6, rtol=1e-6)


def test_two_calls_before_one_backward_keep_their_own_estimates():
    torch.manual_seed(0)
    norm = EstimatedBatchNorm2d(3)
    a, b = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4)
    first = norm(a)
    scale = torch.rsqrt(norm.running_var + norm.eps).reshape(1, 3, 1, 1).expand_as(a).clone()
    norm(b)
    first.sum().backward()
    torch.testing.assert_close(a.grad, scale)


def test_the_estimate_of_many_single_images_is_that_of_their_batch():
    torch.manual_seed(0)
    images = torch.randn(64, 2, 8, 8) * torch.tensor([2.0, 0.5]).reshape(1, 2, 1, 1) + 3
    norm = EstimatedBatchNorm2d(2, speed=0.02)
    for _ in range(12):
        for image in images:
            norm(image.unsqueeze(0))
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)), atol=0.1, rtol=0.02)
    torch.testing.assert_close(norm.running_var, images.var((0, 2, 3)), atol=0.1, rtol=0.1)


def test_norms_of_one_kind_are_replaced():
    model = nn.Sequential(ConvNormAct(1, 8, 3), nn.Sequential(ConvNormAct(8, 16, 3)))
    replace_norms(model, nn.BatchNorm2d, lambda n: BatchChannelNorm2d(n.num_features, 8))
    assert sum(isinstance(m, BatchChannelNorm2d) for m in model.modules()) == 2
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
