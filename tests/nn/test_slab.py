"""Progressive batch norm folds into the linear behind it; both orders of linear attention agree."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.errors import InputError
from paredown.nn import EncoderBlock
from paredown.nn.linear_attention import SimplifiedLinearAttention, linear_attention
from paredown.nn.norm import replace_norms
from paredown.nn.progressive_norm import (
    ProgressiveNorm,
    RepBatchNorm,
    fold_progressive,
    folded_linear,
)


def used(norm, channels):
    """A norm whose statistics and parameters are not those of the start."""
    with torch.no_grad():
        norm.eta.fill_(0.7)
        norm.norm.weight.uniform_(0.5, 1.5)
        norm.norm.bias.normal_()
        norm.norm.running_mean.normal_()
        norm.norm.running_var.uniform_(0.5, 2)
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_folded_linear_equals_norm_and_linear(bias):
    torch.manual_seed(0)
    norm, linear = used(RepBatchNorm(12), 12), nn.Linear(12, 7, bias=bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(folded_linear(norm, linear)(x), linear(norm(x)), atol=1e-5, rtol=0)
    gain, shift = norm.affine()
    torch.testing.assert_close(norm(x), gain * x + shift, atol=1e-6, rtol=1e-5)


def test_the_blend_goes_from_layer_norm_to_batch_norm():
    torch.manual_seed(0)
    norm = ProgressiveNorm(6, steps=4)
    x = torch.randn(8, 3, 6)
    layer = F.layer_norm(x, (6,), eps=1e-6)
    rep = F.batch_norm(x.flatten(0, 1), None, None, training=True).reshape(x.shape) + x
    for lam in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        torch.testing.assert_close(norm(x), lam * layer + (1 - lam) * rep, atol=1e-5, rtol=1e-4)
    assert int(norm.step) == 6
    again = ProgressiveNorm(6, steps=4)
    again.load_state_dict(norm.state_dict())
    assert again.share() == 0
    norm.eval()
    torch.testing.assert_close(norm(x), norm.rep(x))
    assert int(norm.step) == 6, "evaluation is not a step"


def test_a_whole_encoder_folds_to_no_norms():
    torch.manual_seed(0)
    model = nn.Sequential(EncoderBlock(16, 2), EncoderBlock(16, 2))
    replace_norms(model, nn.LayerNorm, lambda n: ProgressiveNorm(n.normalized_shape[0], 10))
    for m in model.modules():
        if isinstance(m, ProgressiveNorm):
            used(m.rep, 16)
    model.eval()
    folded = fold_progressive(model)
    x = torch.randn(2, 9, 16)
    assert not any(isinstance(m, (ProgressiveNorm, nn.LayerNorm)) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 17, 63])
def test_both_orders_are_the_same_sum(tokens):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8).relu() for _ in range(3))
    torch.testing.assert_close(
        linear_attention(q, k, v),
        linear_attention(q, k, v, order="quadratic"),
        atol=1e-5,
        rtol=1e-5,
    )


def test_simplified_attention_is_the_sum_over_keys_and_a_local_convolution():
    torch.manual_seed(0)
    layer = SimplifiedLinearAttention(8, 2, (3, 5))
    x = torch.randn(2, 15, 8)
    q, k, v = layer.qkv(x).chunk(3, -1)
    q, k = q.relu(), (k + layer.position).relu()
    rows = []
    for head in range(2):
        cut = slice(4 * head, 4 * head + 4)
        weights = q[..., cut] @ k[..., cut].mT
        mixed = weights @ v[..., cut] / (weights.sum(-1, keepdim=True) + 1e-6)
        local = layer.local(v[..., cut].mT.reshape(2, 4, 3, 5)).flatten(2).mT
        rows.append(mixed + local)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(rows, -1)), atol=1e-5, rtol=1e-5)
    other = SimplifiedLinearAttention(8, 2, (3, 5), order="quadratic")
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), atol=1e-5, rtol=1e-5)


def test_the_cheaper_order_is_taken():
    assert SimplifiedLinearAttention(64, 2, (4, 4)).order == "quadratic"
    assert SimplifiedLinearAttention(64, 2, (8, 8)).order == "linear"
    with pytest.raises(InputError, match="built for 4 x 4"):
        SimplifiedLinearAttention(8, 2, (4, 4))(torch.randn(1, 15, 8))
