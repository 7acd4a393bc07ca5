"""MOAT: a window as large as the map is global attention; sizes, biases, what it refuses."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.moat import MOAT, MobileConv, RelativeAttention, moat


def small(image_size=64, **settings):
    torch.manual_seed(0)
    return MOAT(
        8, (8, 8, 16, 32), (1, 1, 2, 1), 5, 1, image_size=image_size, head_dim=8, **settings
    ).eval()


def test_one_window_over_the_map_is_global_attention():
    torch.manual_seed(0)
    attention = RelativeAttention(16, 3, head_dim=8)
    x = torch.randn(2, 3, 3, 16)
    q, k, v = attention.qkv(x.reshape(2, 9, 16)).reshape(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) / 8**0.5
    for a in range(9):
        for b in range(9):
            down, right = a // 3 - b // 3 + 2, a % 3 - b % 3 + 2
            scores[:, :, a, b] += attention.table[:, down, right]
    wanted = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 9, 16))
    torch.testing.assert_close(attention(x).reshape(2, 9, 16), wanted, atol=1e-5, rtol=1e-5)


def test_windows_that_cover_the_map_change_nothing():
    whole, windowed = small(), small(windows=(4, 2))
    windowed.load_state_dict(whole.state_dict())
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(windowed(x), whole(x))
        assert windowed(torch.randn(1, 1, 128, 64)).shape == (1, 5)
        outside = torch.randn(1, 1, 128, 64)
        near = outside.clone()
        near[:, :, 96:] = 0
        # Windows alone do not reach across, the depthwise convolutions do.
        a, b = (windowed.stages[0](windowed.stem(t)) for t in (outside, near))
    assert not torch.equal(a, b)


def test_a_bias_table_is_enlarged_to_the_window():
    attention = RelativeAttention(16, 6, table=3, head_dim=8)
    assert attention.table.shape == (2, 5, 5)
    attention.table.data.fill_(0.5)
    torch.testing.assert_close(attention.bias(), torch.full((2, 36, 36), 0.5))


def test_networks_of_large_images_keep_the_tables_of_224():
    with torch.device("meta"):
        net = moat("3")
    assert net.get_parameter("stages.2.0.attention.table").shape == (20, 27, 27)


def test_the_skip_halves_with_the_block():
    block = MobileConv(6, 10, stride=2)
    assert block(torch.randn(2, 6, 7, 9)).shape == (2, 10, 4, 5)


def test_what_it_refuses():
    with pytest.raises(UnknownName, match="tiny-0"):
        moat("tiny0")
    with pytest.raises(InputError, match="multiple of 32"):
        small(60)
    with pytest.raises(InputError, match="64x64"):
        small()(torch.zeros(1, 1, 96, 96))
    with pytest.raises(InputError, match="multiples of 64"):
        small(windows=(2, 2))(torch.zeros(1, 1, 96, 96))
    with pytest.raises(InputError, match="heads of 8"):
        RelativeAttention(12, 3, head_dim=8)
