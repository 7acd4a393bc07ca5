"""ConViT begins as a convolution: exact with sharp, purely positional heads."""

import pytest
import torch
import torch.nn.functional as F

from paredown.errors import InputError, UnknownName
from paredown.zoo.convit import ConViT, GatedPositionalAttention, convit


def sharp(side=6, channels=18, strength=50.0):
    torch.manual_seed(0)
    attention = GatedPositionalAttention(channels, 9, side, strength=strength)
    attention.gate.data.fill_(100.0)
    return attention


def test_positional_attention_is_a_3x3_convolution_inside():
    attention, side = sharp(), 6
    x = torch.randn(2, side * side, 18)
    with torch.inference_mode():
        ours = attention(x).transpose(1, 2).reshape(2, 18, side, side)
        # Head h passes its two channels from its own offset: taps of one convolution.
        weight = torch.zeros(18, 18, 3, 3)
        for head in range(9):
            right, down = head // 3, head % 3
            part = slice(2 * head, 2 * head + 2)
            weight[:, part, down, right] = attention.proj.weight[:, part]
        image = x.transpose(1, 2).reshape(2, 18, side, side)
        conv = F.conv2d(image, weight, attention.proj.bias)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], conv, atol=1e-4, rtol=1e-4)


def test_heads_begin_on_a_grid_and_look_nearer_with_more_strength():
    x = torch.randn(1, 49, 18)
    with torch.inference_mode():
        weights = sharp(7).attention(x)[0, :, 24].reshape(9, 7, 7)
        near, far = sharp(7, strength=50.0).locality(x), sharp(7, strength=0.1).locality(x)
    peaks = [divmod(int(w.argmax()), 7) for w in weights]
    assert sorted(peaks) == [(r, c) for r in (2, 3, 4) for c in (2, 3, 4)]
    assert (near < far).all()


def test_attention_rows_sum_to_one_and_a_closed_gate_is_content_alone():
    torch.manual_seed(0)
    attention = GatedPositionalAttention(16, 4, 3)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(attention.attention(x).sum(-1), torch.ones(2, 4, 9))
    attention.gate.data.fill_(-100.0)
    q, k = attention.qk(x).reshape(2, 9, 2, 4, 4).permute(2, 0, 3, 1, 4)
    content = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    torch.testing.assert_close(attention.attention(x), content, atol=1e-5, rtol=1e-5)


def test_building_keeps_the_local_beginning():
    net = ConViT(4, 4, 5, 1, depth=3, local=2, image_size=12, patch=4)
    for block in net.blocks[:2]:
        assert torch.equal(block.attention.v.weight, torch.eye(16))
        assert torch.equal(block.attention.gate, torch.ones(4))
    assert net(torch.zeros(2, 1, 12, 12)).shape == (2, 5)


def test_what_it_refuses():
    with pytest.raises(UnknownName, match="ti"):
        convit("tii")
    with pytest.raises(InputError, match="square grid"):
        GatedPositionalAttention(16, 8, 3)
    with pytest.raises(InputError, match="built for 12x12"):
        ConViT(4, 4, 5, 1, depth=1, local=1, image_size=12, patch=4)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match="depth 2"):
        ConViT(4, 4, depth=2, local=3)
