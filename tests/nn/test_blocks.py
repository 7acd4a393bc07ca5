"""Shared blocks against their definitions: a slower form written out, or torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.nn import (
    ConvMlp,
    DropPath,
    GatedMlp,
    GhostModule,
    GlobalResponseNorm,
    LayerNorm2d,
    LayerScale,
    LinearAttention,
    Mlp,
    PartialConv,
    PatchEmbed,
    SqueezeExcite,
)
from paredown.nn.conv import ConvNormAct
from paredown.nn.drop import drop_path, rising_rates
from paredown.nn.embed import patches, resized_positions, sincos_2d
from paredown.nn.features import need_size, tapped
from paredown.nn.linear_attention import elu_plus_one, linear_attention


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_conv_keeps_the_size_with_any_odd_kernel():
    x = torch.randn(1, 4, 9, 11)
    assert ConvNormAct(4, 6, (1, 7))(x).shape == (1, 6, 9, 11)
    assert ConvNormAct(4, 6, 3, dilation=3)(x).shape == (1, 6, 9, 11)
    assert ConvNormAct(4, 6, 3, padding=0)(x).shape == (1, 6, 7, 9)


def test_squeeze_excite_is_a_product_with_the_gate_of_the_mean():
    x, block = torch.randn(2, 8, 5, 7), SqueezeExcite(8, 2)
    y = F.relu(block.reduce(x.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(block(x), x * torch.sigmoid(block.expand(y)))


@pytest.mark.parametrize(("outputs", "ratio"), [(8, 2), (7, 2), (9, 4)])
def test_ghost_module_has_its_channels_and_its_primary_part(outputs, ratio):
    block = GhostModule(6, outputs, ratio=ratio).eval()
    x = torch.randn(2, 6, 5, 5)
    out, primary = block(x), block.primary(x)
    assert out.shape == (2, outputs, 5, 5)
    torch.testing.assert_close(out[:, : primary.shape[1]], primary)
    rest = block.cheap(primary)[:, : outputs - primary.shape[1]]
    torch.testing.assert_close(out[:, primary.shape[1] :], rest)


def test_partial_conv_is_a_dense_conv_with_the_identity_elsewhere():
    x, block = torch.randn(2, 8, 6, 5), PartialConv(8)
    weight = torch.zeros(8, 8, 3, 3)
    weight[:2, :2] = block.conv.weight
    weight[torch.arange(2, 8), torch.arange(2, 8), 1, 1] = 1
    torch.testing.assert_close(block(x), F.conv2d(x, weight, padding=1))
    with pytest.raises(InputError, match="leaves none"):
        PartialConv(3, share=0.25)


def test_layer_norm_2d_normalises_each_pixel():
    x = LayerNorm2d(16)(torch.randn(2, 16, 3, 4) * 5 + 2)
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(1, correction=0), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_global_response_norm_starts_as_the_identity_and_agrees_in_both_layouts():
    x = torch.randn(2, 6, 4, 5)
    first, last = GlobalResponseNorm(6), GlobalResponseNorm(6, channels_last=True)
    torch.testing.assert_close(first(x), x)
    first.gamma.data.normal_()
    first.beta.data.normal_()
    last.load_state_dict({k: v.permute(0, 2, 3, 1) for k, v in first.state_dict().items()})
    torch.testing.assert_close(last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), first(x))
    # A channel with the mean response is scaled by gamma + 1.
    flat = torch.ones(1, 6, 2, 2)
    want = (1 + first.gamma + first.beta).expand(1, 6, 2, 2)
    torch.testing.assert_close(first(flat), want, atol=1e-5, rtol=1e-5)


def test_layer_scale_in_both_layouts():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(LayerScale(3, 0.5, dim=1)(x), 0.5 * x)
    torch.testing.assert_close(LayerScale(5, 0.5)(x), 0.5 * x)


def test_drop_path_keeps_the_mean_and_whole_examples():
    x, block = torch.ones(4000, 3), DropPath(0.25)
    out = block(x)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 4 / 3]))
    assert (out.amax(1) == out.amin(1)).all()
    # 4000 draws: the standard error of the mean is 0.009.
    assert out.mean().item() == pytest.approx(1.0, abs=0.04)
    assert torch.equal(block.eval()(x), x)
    assert isinstance(drop_path(0.0), nn.Identity)
    assert rising_rates(0.2, 3) == pytest.approx([0, 0.1, 0.2])
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        DropPath(1.0)


def test_mlps_are_their_formulae():
    x = torch.randn(2, 5, 8)
    mlp, gated = Mlp(8, 16, 3), GatedMlp(8, 12)
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))
    torch.testing.assert_close(gated(x), gated.down(F.silu(gated.gate(x)) * gated.up(x)))
    conv, image = ConvMlp(8, 16), torch.randn(2, 8, 3, 4)
    plain = Mlp(8, 16)
    plain.load_state_dict(
        {k: v.reshape(plain.state_dict()[k].shape) for k, v in conv.state_dict().items()}
    )
    torch.testing.assert_close(conv(image), plain(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_linear_attention_equals_the_quadratic_form():
    q, k, v = (torch.randn(2, 3, 7, 4) for _ in range(3))
    q, k = elu_plus_one(q), elu_plus_one(k)
    scores = q @ k.transpose(-2, -1)
    want = (scores / scores.sum(-1, keepdim=True)) @ v
    torch.testing.assert_close(linear_attention(q, k, v), want, atol=1e-5, rtol=1e-5)
    assert LinearAttention(12, 3)(torch.randn(2, 7, 12)).shape == (2, 7, 12)
    with pytest.raises(InputError, match="heads"):
        LinearAttention(10, 3)


def test_patch_embed_is_a_linear_map_of_each_patch():
    block, x = PatchEmbed(3, 8, 4), torch.randn(2, 3, 8, 12)
    cut = F.unfold(x, 4, stride=4).transpose(1, 2)
    want = F.linear(cut, block.proj.weight.flatten(1), block.proj.bias)
    torch.testing.assert_close(block(x), want, atol=1e-5, rtol=1e-5)
    assert patches(32, 4) == 8
    with pytest.raises(InputError, match="as 28"):
        patches(30, 4)


def test_sine_positions_tell_columns_from_rows():
    table = sincos_2d(4, 16).reshape(4, 4, 16)
    assert torch.equal(table[0, 2, :8], table[3, 2, :8])
    assert torch.equal(table[1, 0, 8:], table[1, 3, 8:])
    assert torch.pdist(table.reshape(16, 16)).min() > 0.1
    with pytest.raises(InputError, match="multiple of 4"):
        sincos_2d(4, 10)


def test_positions_are_resized_and_the_class_token_kept():
    table = torch.randn(1, 1 + 16, 8)
    bigger = resized_positions(table, 8, prefix=1)
    assert bigger.shape == (1, 65, 8)
    assert torch.equal(bigger[:, 0], table[:, 0])
    assert resized_positions(table, 4, prefix=1) is table
    flat = torch.cat((table[:, :1], torch.ones(1, 16, 8)), 1)
    torch.testing.assert_close(resized_positions(flat, 7, prefix=1)[:, 1:], torch.ones(1, 49, 8))
    with pytest.raises(InputError, match="no square"):
        resized_positions(table, 8)


def test_taps_are_the_outputs_on_the_way():
    layers = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(4)))
    x = torch.randn(1, 2, 3, 3)
    maps = tapped(layers, x, (1, 3))
    torch.testing.assert_close(maps[0], layers[:2](x))
    torch.testing.assert_close(maps[1], layers(x))


def test_sizes_a_network_cannot_take_are_refused_with_those_it_can():
    need_size(torch.empty(1, 3, 64, 96), network="net", multiple=32)
    with pytest.raises(InputError, match="net takes heights and widths that are multiples of 32"):
        need_size(torch.empty(1, 3, 64, 95), network="net", multiple=32)
    with pytest.raises(InputError, match="at least 75 pixels, got 64x64"):
        need_size(torch.empty(1, 3, 64, 64), network="net", minimum=75)
    with pytest.raises(InputError, match="built for 224x224 images, got 64x64"):
        need_size(torch.empty(1, 3, 64, 64), network="net", exactly=224)
