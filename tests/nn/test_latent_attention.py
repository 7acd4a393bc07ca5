"""Latent attention: decoding on latents equals attention over all tokens."""

from __future__ import annotations

import torch

from paredown.nn import LatentAttention
from paredown.nn.latent_attention import rotate


def layer() -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(24, heads=3, kv_rank=10, rope_dim=4, nope_dim=6, value_dim=5).eval()


@torch.no_grad()
def test_absorbed_decoding_equals_the_naive_form_token_by_token() -> None:
    net, x = layer(), torch.randn(2, 7, 24)
    whole = net(x)
    cache = net.latents(x[:, :3])
    for t in range(3, 7):
        got, cache = net.decode(x[:, t : t + 1], cache)
        assert torch.allclose(got, whole[:, t : t + 1], atol=1e-5)
    assert cache.shape == (2, 7, 14)
    assert torch.allclose(cache, net.latents(x), atol=1e-6)


@torch.no_grad()
def test_the_past_does_not_see_the_future() -> None:
    net, x = layer(), torch.randn(1, 6, 24)
    y = x.clone()
    y[:, 4:] += 1
    assert torch.equal(net(x)[:, :4], net(y)[:, :4])
    assert not torch.allclose(net(x)[:, 4:], net(y)[:, 4:])


def test_rotation_keeps_lengths_and_depends_on_distance() -> None:
    x, y = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    assert torch.allclose(rotate(x, torch.tensor([5])).norm(), x.norm())
    products = [
        (rotate(x, torch.tensor([p])) * rotate(y, torch.tensor([p + 3]))).sum() for p in (0, 11)
    ]
    assert torch.allclose(*products, atol=1e-5)
