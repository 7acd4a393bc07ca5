"""NiNformer: the gate against its equations, the count of a block, what a gate of one leaves."""

import pytest
import torch
from torch import nn

from paredown import zoo
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.workload import Workload
from paredown.zoo.ninformer import MixerGate, NiNBlock, block_macs


class One(nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


def test_a_gate_of_one_leaves_a_linear_map_and_an_mlp():
    torch.manual_seed(0)
    block = NiNBlock(6, 8, 12, dropout=0.0).eval()
    block.gate = One()
    x = torch.randn(2, 6, 8)
    with torch.inference_mode():
        mid = x + block.proj(block.norm(x))
        want = mid + block.mlp(block.norm(mid))
        torch.testing.assert_close(block(x), want)
        # Tokens do not meet without the gate.
        alone = torch.cat([block(x[:, i : i + 1]) for i in range(6)], 1)
        torch.testing.assert_close(block(x), alone)


def test_the_gate_mixes_tokens_then_channels():
    torch.manual_seed(0)
    gate = MixerGate(5, 4, 7, dropout=0.0).eval()
    x = torch.randn(3, 5, 4)
    with torch.inference_mode():
        mid = x.clone()
        for c in range(4):
            column = nn.functional.layer_norm(x, (4,))[:, :, c]
            mid[:, :, c] += gate.token_mlp(column)
        want = mid + gate.channel_mlp(nn.functional.layer_norm(mid, (4,)))
        torch.testing.assert_close(gate(x), want)


def macs(model, x):
    graph = capture(Workload(model.eval(), (x,)))
    assert not graph.unpriced
    return sum(n.macs or 0 for n in graph.nodes)


@pytest.mark.parametrize(("tokens", "channels", "hidden"), [(16, 8, 12), (32, 8, 12), (9, 20, 6)])
def test_a_block_costs_what_the_formula_says(tokens, channels, hidden):
    block = NiNBlock(tokens, channels, hidden, dropout=0.0)
    assert macs(block, torch.randn(1, tokens, channels)) == block_macs(tokens, channels, hidden)


def test_the_published_network():
    assert 4 * block_macs(64, 256, 512) == 218_103_808
    with torch.device("meta"):
        net = zoo.create("ninformer")
    assert sum(p.numel() for p in net.parameters()) == 2_652_170
    assert sum(isinstance(m, nn.LayerNorm) for m in net.blocks[0].modules()) == 3


def test_dropout_stands_behind_both_linear_maps():
    net = zoo.create("ninformer", channels=8, hidden=16, depth=1, dropout=1.0).train()
    x = torch.randn(1, 64, 8)
    block = net.blocks[0]
    # With everything dropped the gate is the identity and the last MLP adds nothing.
    normed = block.norm(x)
    torch.testing.assert_close(block(x), x + block.proj(normed) * normed)


def test_sizes_are_baked_in():
    with pytest.raises(InputError, match="built for 32x32 images, got 16x16"):
        zoo.create("ninformer")(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="does not divide the image_size 30"):
        zoo.create("ninformer", image_size=30)
