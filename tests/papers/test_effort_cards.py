"""What the cards on effort per input rest on: hard shares, equal loads, pools of like networks."""

import pytest
import torch

from paredown.papers.cards import early, modules, pairs
from paredown.runtime.adaptive_mlp import AdaptiveMlp


def test_hard_scans_come_at_the_stated_share_and_the_rest_is_untouched():
    easy, labels = early.mixed("held-out", 0.0, 7)
    hard, same = early.mixed("held-out", 1.0, 7)
    assert torch.equal(labels, same)
    assert not (easy == hard).flatten(1).all(1).any()
    half, _ = early.mixed("held-out", 0.5, 7)
    like_easy = (half == easy).flatten(1).all(1)
    like_hard = (half == hard).flatten(1).all(1)
    assert (like_easy ^ like_hard).all()
    assert float(like_hard.float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("load", [0.4, 0.6, 1.0])
def test_timed_gates_choose_at_the_load_they_are_named_by(load):
    torch.manual_seed(0)
    x = torch.randn(1, 197, 32)
    m = AdaptiveMlp(32, 32, 8, 4, "gelu", [load] * 4).eval()
    torch.nn.init.normal_(m.down)
    modules._spread(m, x, load)
    with torch.no_grad():
        mean = float(m.gate(x).argmax(-1).float().mean()) / 4
    assert mean == pytest.approx(load, abs=0.02)


def test_the_pool_is_small_beside_the_large_network():
    x = torch.zeros(2, 1, 16, 16)
    size = sum(p.numel() for p in pairs.large().parameters())
    for build in pairs.POOL.values():
        net = pairs._convnet(*build)
        assert net(x).shape == (2, 10)
        assert 10 * sum(p.numel() for p in net.parameters()) < size
