"""OverLoCK: merging is lossless; ContMix equals its unfolded form, and a static convolution."""

import pytest
import torch
import torch.nn.functional as F
from zoo_nets import lively

from paredown.errors import InputError, UnknownName
from paredown.nn import reparameterise
from paredown.zoo._contmix import ContMix, enlarged, position_bias
from paredown.zoo.overlock import OverLoCK, Plan, overlock

PLAN = Plan((1, 1, 1, 1), (2, 1), (16, 16, 16, 32), (1, 2))


def small(**settings):
    torch.manual_seed(0)
    return OverLoCK(PLAN, 5, 1, kernels=(7, 7, 7, 7), ratio=2, **settings)


def inputs(h=9, w=8):
    torch.manual_seed(1)
    return torch.randn(2, 16, h, w), torch.randn(2, 16, h, w), torch.randn(2, 6, h, w)


def mixer():
    torch.manual_seed(0)
    mix = lively(ContMix(16, 6, 2, 7, small=3))
    for table in mix.biases:
        table.data.normal_()
    return mix


def test_contmix_equals_a_loop_over_positions():
    mix, (mixed, local, context) = mixer(), inputs()
    with torch.inference_mode():
        ours = mix(mixed, local, context)
        query = (mix.query(local) * mix.scale).reshape(2, 4, 2, 9, 8)
        key = mix.key(F.adaptive_avg_pool2d(context, 7)).reshape(2, 4, 2, 49)
        for i in range(9):
            for j in range(8):
                affinity = torch.einsum("bgc,bgcl->bgl", query[..., i, j], key)
                logits = affinity @ mix.kernel.weight[:, :, 0, 0].T + mix.kernel.bias
                at = 0
                for half, side in enumerate((3, 7)):
                    top = min(max(i - side // 2, 0), 9 - side)
                    left = min(max(j - side // 2, 0), 8 - side)
                    row, column = top - i + side - 1, left - j + side - 1
                    bias = mix.biases[half][:, row : row + side, column : column + side]
                    taps = (logits[..., at : at + side**2] + bias.flatten(1)).softmax(-1)
                    values = mixed.reshape(2, 2, 4, 2, 9, 8)[:, half]
                    window = values[..., top : top + side, left : left + side].flatten(3)
                    wanted = (window * taps[:, :, None]).sum(-1).flatten(1)
                    found = ours[:, 8 * half : 8 * half + 8, i, j]
                    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
                    at += side**2


def test_constant_logits_are_a_static_convolution_inside():
    mix, (mixed, local, context) = ContMix(16, 6, 2, 7, small=3).eval(), inputs(11, 12)
    torch.nn.init.zeros_(mix.query.norm.weight)
    with torch.inference_mode():
        ours = mix(mixed, local, context)
        small, large = mix.kernel.bias.split((9, 49))
        for half, logits, side in ((0, small, 3), (1, large, 7)):
            weight = logits.softmax(0).reshape(1, 1, side, side).repeat(8, 1, 1, 1)
            part = slice(8 * half, 8 * half + 8)
            static = F.conv2d(mixed[:, part], weight, groups=8)
            edge = side // 2
            inside = ours[:, part, edge:-edge, edge:-edge]
            torch.testing.assert_close(inside, static, atol=1e-5, rtol=1e-5)


def test_kernels_sum_to_one_and_biases_are_by_offset():
    mix, (_, local, context) = mixer(), inputs()
    for kernel in mix.kernels(local, context):
        torch.testing.assert_close(kernel.sum(-1), torch.ones(2, 4, 9, 8))
    table = torch.arange(25.0).reshape(1, 5, 5)
    bias = position_bias(table, 4, 5)[0]
    assert bias[1, 2].reshape(3, 3).tolist() == table[0, 1:4, 1:4].tolist()
    assert bias[0, 0].reshape(3, 3).tolist() == table[0, 2:, 2:].tolist()
    assert bias[3, 4].reshape(3, 3).tolist() == table[0, :3, :3].tolist()


def test_small_maps_are_enlarged_in_proportion():
    assert enlarged((14, 20), 13) == (14, 20)
    assert enlarged((4, 8), 13) == (13, 26)
    assert enlarged((8, 4), 13) == (26, 13)
    mix, tensors = mixer(), inputs(3, 4)
    assert mix(*tensors).shape == (2, 16, 3, 4)


@pytest.mark.parametrize("size", [(64, 64), (97, 70)])
def test_the_merged_network_equals_the_branched_one(size):
    net = lively(small())
    x = torch.randn(1, 1, *size)
    with torch.inference_mode():
        torch.testing.assert_close(reparameterise(net)(x), net(x), atol=1e-4, rtol=1e-4)


def test_merging_gives_the_published_count():
    with torch.device("meta"):
        merged, trained = overlock("xt", merged=True), overlock("xt")
    assert sum(p.numel() for p in merged.parameters()) == 16_453_712
    assert sum(p.numel() for p in trained.parameters()) == 17_307_272


def test_both_heads_learn():
    net, x = small(), torch.randn(2, 1, 64, 64)
    main, auxiliary = net.overview(x)
    (main.square().mean() + auxiliary.square().mean()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]
    with pytest.raises(InputError, match="auxiliary"):
        small(auxiliary=False).overview(x)


def test_features_and_what_it_refuses():
    net = small(features_only=True)
    shapes = [tuple(f.shape[1:]) for f in net(torch.zeros(1, 1, 64, 64))]
    assert shapes == [(16, 16, 16), (16, 8, 8), (24, 4, 4), (40, 2, 2)]
    with pytest.raises(UnknownName, match="xt"):
        overlock("xs")
    with pytest.raises(InputError, match="kernels"):
        OverLoCK(PLAN, kernels=(7, 7, 7, 5))
    with pytest.raises(InputError, match="groups"):
        ContMix(12, 6, 2, 7)
