"""PATNet: open gates leave FasterNet's partial convolution; distances; gates over space."""

import pytest
import torch
from torch import nn
from zoo_nets import lively

from paredown.errors import InputError, UnknownName
from paredown.nn import PartialConv
from paredown.nn.act import relu
from paredown.zoo.patnet import (
    FAR,
    DistanceAttention,
    PartialAttentionConv,
    PATNet,
    Plan,
    SpatialGate,
    StatisticsGate,
    distance_buckets,
    patnet,
)

PLAN = Plan(8, (1, 1, 1, 1), relu, True, 2)


def test_with_attention_replaced_by_one_it_is_partial_convolution():
    torch.manual_seed(0)
    ours, plain, x = PartialAttentionConv(16), PartialConv(16), torch.randn(2, 16, 9, 7)
    plain.conv.weight = ours.conv.weight
    ours.attend = nn.Identity()
    torch.testing.assert_close(ours(x), plain(x), atol=0, rtol=0)
    full = nn.Conv2d(16, 16, 3, bias=False)
    assert 16 * ours.conv.weight.numel() == full.weight.numel()


def test_the_gate_reads_mean_and_deviation_and_may_be_opened():
    torch.manual_seed(0)
    gate, x = lively(StatisticsGate(6)), torch.randn(3, 6, 5, 4)
    mean, deviation = x.mean((2, 3)), x.std((2, 3))
    weight = gate.mix.weight[:, :, 0]
    mixed = mean @ weight[..., 0].T + deviation @ weight[..., 1].T
    want = x * gate.act(gate.norm(mixed[..., None, None]))
    torch.testing.assert_close(gate(x), want)
    gate.norm.weight.data.zero_()
    gate.norm.bias.data.fill_(3)
    torch.testing.assert_close(gate(x), x)


def test_a_flat_map_has_finite_gradients():
    gate, x = StatisticsGate(4), torch.ones(2, 4, 3, 3, requires_grad=True)
    gate(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_distances_are_rounded_and_far_ones_share_buckets():
    near = distance_buckets(3, 4)
    assert near[0].reshape(3, 4).tolist() == [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 3, 4]]
    assert torch.equal(near, near.T)
    line = distance_buckets(1, 400)[0]
    assert line[:21].tolist() == list(range(21))
    assert line[160:].unique().tolist() == [FAR]
    assert (line.diff() >= 0).all()
    assert line[21:].unique().tolist() == list(range(20, FAR + 1))


def test_attention_with_a_bias_on_itself_alone_sees_itself_alone():
    torch.manual_seed(0)
    attention, x = DistanceAttention(8, 2), torch.randn(2, 8, 4, 3)
    attention.table.data[:, 1:] = -1e4
    value = attention.qkv(x.flatten(2).transpose(1, 2))[..., 16:]
    want = attention.proj(value).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x), want, atol=1e-6, rtol=1e-5)


def test_the_gate_over_space_scales_its_half_only():
    torch.manual_seed(0)
    gate, x = SpatialGate(8).eval(), torch.randn(1, 8, 5, 5)
    found = gate(x)
    weight = gate.act(gate.map(x[:, :4]))
    torch.testing.assert_close(found[:, :4], gate.norm(x[:, :4] * weight))
    changed = x.clone()
    changed[:, :4] += 1
    assert torch.equal(gate(changed)[:, 4:], found[:, 4:])


def test_features_and_what_it_refuses():
    net = PATNet(PLAN, 5, 1, features_only=True)
    shapes = [tuple(m.shape[1:]) for m in net(torch.zeros(2, 1, 64, 96))]
    assert shapes == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    with pytest.raises(InputError, match="at least 32 pixels"):
        net(torch.zeros(1, 1, 31, 64))
    with pytest.raises(InputError, match="heads"):
        DistanceAttention(6, 4)
    with pytest.raises(InputError, match="share"):
        PartialAttentionConv(2)
    with pytest.raises(UnknownName, match="t2"):
        patnet("t3")
