"""GhostNetV2's gates: two lines of taps are one rank-1 kernel; where attention stands."""

import pytest
import torch
import torch.nn.functional as F

from paredown.errors import InputError
from paredown.zoo.ghostnetv2 import DecoupledAttention, GhostNetV2


def test_row_then_column_is_the_rank_one_kernel():
    # Without the norms between, as the catalogue states it.
    torch.manual_seed(0)
    gate = DecoupledAttention(6, 8)
    x = torch.randn(2, 8, 9, 11)
    with torch.inference_mode():
        apart = gate.column.conv(gate.row.conv(x))
        kernel = gate.column.conv.weight @ gate.row.conv.weight
        whole = F.conv2d(x, kernel, padding=2, groups=8)
    torch.testing.assert_close(apart, whole, atol=1e-5, rtol=1e-5)


def test_gate_lies_between_nought_and_one_at_the_maps_size():
    gate = DecoupledAttention(6, 8).eval()
    with torch.inference_mode():
        out = gate(torch.randn(2, 6, 9, 12), (9, 12))
    assert out.shape == (2, 8, 9, 12)
    assert out.min() > 0
    assert out.max() < 1


def test_first_two_rows_are_plain_and_without_attention_it_is_ghostnet():
    with torch.device("meta"):
        net = GhostNetV2(1.0)
    blocks = [b for stage in net.stages for b in stage if hasattr(b, "attention")]
    assert [b.attention is None for b in blocks] == [True, True] + [False] * 14
    with torch.device("meta"):
        first = GhostNetV2(1.0, attention=False)
    # The first paper prints 5.2M.
    assert sum(p.numel() for p in first.parameters()) == pytest.approx(5.2e6, rel=0.005)


def test_sizes():
    net = GhostNetV2(0.5, 3, 1).eval()
    assert net(torch.zeros(1, 1, 33, 40)).shape == (1, 3)
    with pytest.raises(InputError, match="at least 33"):
        net(torch.zeros(1, 1, 32, 32))
