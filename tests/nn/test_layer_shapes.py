"""Hourglass, constant group size, broad layers, factored and pooled convolutions: exact parts."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown import zoo
from paredown.errors import InputError
from paredown.nn.broad import (
    ParallelResidual,
    ResidualConv,
    broaden,
    parallelise,
    truncation_error,
)
from paredown.nn.factored_conv import FactoredConv2d
from paredown.nn.group import GroupCost, balanced_group_size, group_conv, regroup
from paredown.nn.hourglass import HourglassMlp, ResidualMlpBlock, trained_params
from paredown.nn.inverted import InvertedResidual
from paredown.nn.pooled import PooledBottleneck, PooledMixer


@pytest.mark.parametrize("lift", ["frozen", "trained"])
def test_hourglass_parameters_by_formula(lift):
    model = HourglassMlp(10, 7, 32, 6, 3, lift=lift)
    count = sum(p.numel() for p in model.parameters())
    assert count == trained_params(10, 7, 32, 6, 3, lift=lift)
    assert count == 3 * 2 * 32 * 6 + 32 * 7 + (32 * 10 if lift == "trained" else 0)


def test_a_frozen_lift_is_made_again_from_its_seed_and_not_stored():
    torch.manual_seed(0)
    model = HourglassMlp(10, 7, 32, 6, 2, seed=3)
    assert "matrix" not in model.state_dict()
    torch.manual_seed(99)
    again = HourglassMlp(10, 7, 32, 6, 2, seed=3)
    again.load_state_dict(model.state_dict())
    x = torch.randn(4, 10)
    assert torch.equal(again(x), model(x))
    other = HourglassMlp(10, 7, 32, 6, 2, seed=4)
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other(x), model(x))
    assert model.matrix.var().item() == pytest.approx(1 / 10, rel=0.2)


def test_the_identity_lift_gives_the_conventional_block():
    torch.manual_seed(0)
    model = HourglassMlp(8, 5, 8, 24, 1, lift="identity")
    block = model.blocks[0]
    x = torch.randn(3, 8)
    assert torch.equal(model(x), model.head(x)), "blocks start as the identity"
    nn.init.normal_(block.fc2.weight)
    inner = F.gelu(F.layer_norm(x, (8,)) @ block.fc1.weight.T)
    torch.testing.assert_close(model(x), model.head(x + inner @ block.fc2.weight.T))
    with pytest.raises(InputError, match="identity"):
        HourglassMlp(8, 5, 16, 4, 1, lift="identity")
    assert sum(p.numel() for p in ResidualMlpBlock(16, 4).parameters()) == 2 * 16 * 4


def test_group_size_one_is_depthwise_and_all_is_dense():
    assert group_conv(8, 8, 1).groups == 8
    dense = group_conv(8, 12, 8)
    assert dense.groups == 1
    assert dense.weight.shape == (12, 8, 3, 3)
    with pytest.raises(InputError, match="do not divide"):
        group_conv(8, 8, 3)


@pytest.mark.parametrize(("group_size", "stride"), [(1, 1), (4, 2), (16, 1)])
def test_group_cost_is_the_graphs(group_size, stride):
    from paredown.graph.capture import capture
    from paredown.workload import Workload

    conv = group_conv(16, 32, group_size, stride=stride)
    graph = capture(Workload(conv.eval(), (torch.zeros(1, 16, 12, 8),)))
    cost = GroupCost(16, 32, group_size, 3, 12 // stride, 8 // stride, stride)
    assert graph.params == cost.params == 9 * group_size * 32
    assert graph.macs == cost.macs
    assert cost.elements == cost.params + 16 * 96 + 32 * 96 // stride**2
    assert cost.reuse == cost.macs / cost.elements


def test_work_grows_linearly_at_constant_size_and_quadratically_at_constant_number():
    widths = (64, 128, 256)
    size = [GroupCost(c, c, 8, 3, 14, 14).macs for c in widths]
    number = [GroupCost(c, c, c // 8, 3, 14, 14).macs for c in widths]
    assert size[1] / size[0] == size[2] / size[1] == 2
    assert number[1] / number[0] == number[2] / number[1] == 4


def test_computing_and_moving_are_in_balance_where_said():
    cost = GroupCost(64, 64, 1, 3, 28, 28)
    wanted = cost.balance(4.6e-12, 160e-12)
    at = GroupCost(64, 64, 1, 3, 28, 28)
    macs = at.macs * wanted * 4.6e-12
    moved = (at.params * wanted + at.elements - at.params) * 4 * 160e-12
    assert macs == pytest.approx(moved)
    chosen = balanced_group_size(cost, 4.6e-12, 160e-12)
    assert chosen == min((2**i for i in range(7)), key=lambda g: abs(math.log(g / wanted)))


def test_regrouping_keeps_shapes_and_sets_the_group_size():
    torch.manual_seed(0)
    model = zoo.create("mobilenetv1", num_classes=3, in_channels=1, width=0.25).eval()
    new = regroup(model, 4)
    x = torch.randn(1, 1, 64, 64)
    assert new(x).shape == model(x).shape
    grouped = [m for m in new.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert grouped
    assert {m.in_channels // m.groups for m in grouped} == {4}
    with pytest.raises(InputError, match="no grouped"):
        regroup(nn.Conv2d(4, 4, 3), 2)


def test_one_broad_convolution_equals_the_sum_of_branches():
    torch.manual_seed(0)
    layers = [ResidualConv(5, k) for k in (3, 3, 3)]
    parallel = parallelise(layers)[0]
    x = torch.randn(2, 5, 7, 9)
    expected = x + sum(layer.branch(x) for layer in layers)
    torch.testing.assert_close(parallel(x), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(parallel.fuse()(x), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="like, ungrouped"):
        ParallelResidual([ResidualConv(5, 3).branch, ResidualConv(5, 5).branch]).fuse()


def test_as_many_groups_as_layers_change_nothing():
    torch.manual_seed(0)
    layers = [ResidualConv(4) for _ in range(4)]
    x = torch.randn(1, 4, 6, 6)
    deep = nn.Sequential(*layers)
    assert torch.equal(parallelise(layers, 4)(x), deep(x))
    assert torch.equal(parallelise(layers[:1])(x), layers[0](x))
    assert len(parallelise(layers, 2)) == 2
    with pytest.raises(InputError, match="do not divide"):
        parallelise(layers, 3)


def mobile(m):
    return isinstance(m, InvertedResidual) and m.thin_skip


def test_runs_of_any_residual_blocks_are_made_broad():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), *(InvertedResidual(6, 6) for _ in range(4)), InvertedResidual(6, 8)
    ).eval()
    wide, half = broaden(model, mobile), broaden(model, mobile, 2)
    assert [len(wide), len(half), len(model)] == [3, 4, 6]
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        start = model[0](x)
        want = start + sum(block(start) - start for block in model[1:5])
        torch.testing.assert_close(wide(x), model[5](want))
        middle = start + sum(block(start) - start for block in model[1:3])
        want = middle + sum(block(middle) - middle for block in model[3:5])
        torch.testing.assert_close(half(x), model[5](want))
    assert sum(p.numel() for p in wide.parameters()) == sum(p.numel() for p in model.parameters())
    assert truncation_error(list(model[1:5]), start) > 0
    for left in (lambda: broaden(model, mobile, 3), lambda: broaden(model[:2], mobile)):
        with pytest.raises(InputError, match="no run of like"):
            left()


def test_the_dropped_terms_are_of_second_order():
    torch.manual_seed(0)
    layers = [ResidualConv(4, act=nn.Identity).double() for _ in range(3)]
    for layer in layers:
        nn.init.zeros_(layer.branch[0].bias)
    x = torch.randn(2, 4, 8, 8).double()
    start = [layer.branch[0].weight.detach().clone() for layer in layers]

    def error(eps):
        for layer, w in zip(layers, start, strict=True):
            layer.branch[0].weight.data.copy_(w * eps)
        deep = nn.Sequential(*layers)(x)
        return float((deep - parallelise(layers)(x)).detach().norm())

    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=0.1)
    # As a share of the first-order terms, one order less.
    assert truncation_error(layers, x) < 0.01


@pytest.mark.parametrize("form", ["per-kernel", "shared", "cp"])
def test_factored_convolution_equals_its_dense_form(form):
    torch.manual_seed(0)
    layer = FactoredConv2d(3, 5, 5, 2, form=form)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(layer.to_dense()(x), layer(x), atol=1e-5, rtol=1e-5)
    weights = {"per-kernel": 3 * 5 * 2 * 10, "shared": 2 * 5 * 8, "cp": 2 * (3 + 5 + 10)}
    assert sum(p.numel() for p in layer.parameters()) == weights[form] + 5


@pytest.mark.parametrize("form", ["per-kernel", "shared", "cp"])
def test_the_start_has_the_variance_of_he(form):
    torch.manual_seed(0)
    x = torch.randn(4, 32, 24, 24)
    out = FactoredConv2d(32, 64, 3, 64 if form != "per-kernel" else 2, form=form)(x)
    inside = out[..., 4:-4, 4:-4]
    assert inside.var().item() == pytest.approx(2.0, rel=0.35)


@pytest.mark.parametrize(("form", "full"), [("per-kernel", 3), ("shared", 12), ("shared", 20)])
def test_full_rank_from_dense_is_exact(form, full):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, 7, 7)
    layer = FactoredConv2d.from_dense(conv, full, form=form)
    torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-5)
    errors = [
        float((FactoredConv2d.from_dense(conv, r, form=form)(x) - conv(x)).detach().norm())
        for r in range(1, full + 1)
    ]
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(errors))


def test_what_has_no_factored_form_is_refused():
    with pytest.raises(InputError, match="closed solution"):
        FactoredConv2d.from_dense(nn.Conv2d(4, 4, 3, padding=1), 2, form="cp")
    with pytest.raises(InputError, match="stride 1"):
        FactoredConv2d.from_dense(nn.Conv2d(4, 4, 3, 2, padding=1), 2)
    with pytest.raises(InputError, match="odd kernel"):
        FactoredConv2d(4, 4, 2, 1)


@pytest.mark.parametrize("spatial", ["max", "hybrid"])
@pytest.mark.parametrize(("side", "stride"), [(9, 1), (9, 2), (8, 2), (1, 1)])
def test_pooled_bottleneck_halves_as_a_convolution_would(spatial, side, stride):
    block = PooledBottleneck(8, 4, 16, stride=stride, spatial=spatial).eval()
    out = block(torch.randn(2, 8, side, side))
    assert out.shape == (2, 16, (side - 1) // stride + 1, (side - 1) // stride + 1)
    convs = [m for m in block.body.modules() if isinstance(m, nn.Conv2d)]
    spatial_convs = [m for m in convs if m.kernel_size == (3, 3)]
    assert len(spatial_convs) == (1 if spatial == "hybrid" and stride == 2 else 0)


def test_pooled_mixer_pools_over_the_grid():
    torch.manual_seed(0)
    mixer = PooledMixer(4, (3, 5))
    x = torch.randn(2, 15, 4)
    maps = F.gelu(mixer.expand(x)).mT.reshape(2, 12, 3, 5)
    pooled = F.max_pool2d(maps, 3, 1, 1).flatten(2).mT
    torch.testing.assert_close(mixer(x), mixer.project(F.gelu(pooled)))
    with pytest.raises(InputError, match="built for"):
        mixer(torch.randn(2, 14, 4))
