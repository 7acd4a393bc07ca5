"""Dynamic convolutions against the unfolded form, and against an ordinary convolution."""

import pytest
import torch
import torch.nn.functional as F

from paredown.errors import InputError
from paredown.nn.dynamic import dynamic_depthwise, neighbourhood_sum, window_starts


def unfolded(x, kernels):
    batch, channels, h, w = x.shape
    shared, taps = kernels.shape[1:3]
    side = round(taps**0.5)
    patches = F.unfold(x, side, padding=side // 2).reshape(batch, channels, taps, h, w)
    return (patches * kernels.repeat(1, channels // shared, 1, 1, 1)).sum(2)


@pytest.mark.parametrize(("shared", "taps"), [(2, 9), (8, 25), (1, 1)])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (7, 5)])
def test_dynamic_depthwise_equals_the_unfolded_form(shared, taps, size):
    torch.manual_seed(0)
    x = torch.randn(2, 8, *size, requires_grad=True)
    kernels = torch.randn(2, shared, taps, *size, requires_grad=True)
    ours, reference = dynamic_depthwise(x, kernels), unfolded(x, kernels)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    seed = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, (x, kernels), seed)
    theirs = torch.autograd.grad(reference, (x, kernels), seed)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_constant_kernels_are_an_ordinary_depthwise_convolution():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 6), torch.randn(4, 9)
    dynamic = dynamic_depthwise(x, weight.reshape(1, 4, 9, 1, 1).expand(2, 4, 9, 9, 6))
    plain = F.conv2d(x, weight.repeat(2, 1).reshape(8, 1, 3, 3), padding=1, groups=8)
    torch.testing.assert_close(dynamic, plain, atol=1e-5, rtol=1e-5)


def test_neighbourhoods_equal_a_loop_over_positions():
    torch.manual_seed(0)
    values, weights = torch.randn(2, 3, 4, 6, 5), torch.randn(2, 3, 6, 5, 25)
    ours = neighbourhood_sum(values, weights, 5)
    for i in range(6):
        for j in range(5):
            top, left = min(max(i - 2, 0), 1), min(max(j - 2, 0), 0)
            window = values[:, :, :, top : top + 5, left : left + 5].flatten(3)
            wanted = (window * weights[:, :, i, j, None]).sum(-1)
            torch.testing.assert_close(ours[..., i, j], wanted, atol=1e-5, rtol=1e-5)


def test_windows_stay_inside():
    assert window_starts(6, 3).tolist() == [0, 0, 1, 2, 3, 3]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="odd square"):
        dynamic_depthwise(torch.zeros(1, 8, 4, 4), torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(InputError, match="divide"):
        dynamic_depthwise(torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, 9, 4, 4))
    with pytest.raises(InputError, match="larger map"):
        neighbourhood_sum(torch.zeros(1, 1, 1, 4, 9), torch.zeros(1, 1, 4, 9, 25), 5)
