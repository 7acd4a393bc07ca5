"""Window attention against attention written out over the whole map with a mask."""

import pytest
import torch

from paredown.errors import InputError
from paredown.nn import WindowAttention
from paredown.nn.window import from_windows, to_windows


@pytest.mark.parametrize(("h", "w"), [(8, 12), (4, 4)])
def test_windows_and_back(h, w):
    x = torch.randn(2, h, w, 3)
    cut = to_windows(x, 4)
    assert cut.shape == (2 * h * w // 16, 16, 3)
    assert torch.equal(cut[0].reshape(4, 4, 3), x[0, :4, :4])
    assert torch.equal(from_windows(cut, 4, h, w), x)


def by_hand(block, x, shift):
    """Every pair of pixels scored, those in other windows or torn apart by the shift masked."""
    batch, h, w, channels = x.shape
    win = block.window
    q, k, v = block.qkv(x.reshape(batch, h * w, channels)).chunk(3, -1)
    split = [t.reshape(batch, h * w, block.num_heads, -1).transpose(1, 2) for t in (q, k, v)]
    scores = split[0] @ split[1].transpose(-2, -1) * block.head_dim**-0.5
    at = [(i, j) for i in range(h) for j in range(w)]
    for a, (i, j) in enumerate(at):
        for b, (m, n) in enumerate(at):
            same = (i + win - shift) // win == (m + win - shift) // win and (
                (j + win - shift) // win == (n + win - shift) // win
            )
            row = (i - m + win - 1) * (2 * win - 1) + j - n + win - 1
            scores[:, :, a, b] += block.bias.table[row] if same else float("-inf")
    out = (scores.softmax(-1) @ split[2]).transpose(1, 2).reshape(batch, h, w, channels)
    return block.proj(out)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("h", "w"), [(8, 4), (8, 8)])
def test_attention_equals_the_masked_whole(shift, h, w):
    torch.manual_seed(0)
    block = WindowAttention(6, 2, 4, shift=shift)
    block.bias.table.data.normal_()
    x = torch.randn(2, h, w, 6)
    # A side no longer than the window is not shifted; the reference would cut it.
    if w <= 4 and shift:
        out = block(x)
        assert out.shape == x.shape
        return
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_hand(block, x, shift), atol=1e-5, rtol=1e-5)


def test_any_map_size_is_padded_to_windows():
    block = WindowAttention(6, 2, 4, shift=2)
    assert block(torch.randn(1, 7, 9, 6)).shape == (1, 7, 9, 6)
    with pytest.raises(InputError, match="heads"):
        WindowAttention(7, 2)


def test_a_mask_made_for_a_size_is_the_one_made_on_the_way():
    torch.manual_seed(0)
    made = WindowAttention(6, 2, 4, shift=2, size=(8, 12))
    anew = WindowAttention(6, 2, 4, shift=2)
    anew.load_state_dict(made.state_dict())
    x = torch.randn(2, 8, 12, 6)
    assert torch.equal(made(x), anew(x))
