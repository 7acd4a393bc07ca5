"""DiCo: silent at first, the U's shapes, attention over channels, sampling, the authors' names."""

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.nn.diffusion import Diffusion
from paredown.zoo.dico import CompactAttention, DiCo, DiCoBlock, dico
from paredown.zoo.weights import load_weights, names


def small(**settings):
    torch.manual_seed(0)
    return DiCo(8, (1, 1, 1, 1, 1), 2, **{"num_classes": 5, **settings}).eval()


def inputs(size=8):
    torch.manual_seed(1)
    return torch.randn(2, 4, size, size), torch.tensor([3, 700]), torch.tensor([0, 4])


def awake(net):
    """As after training: no layer is zero."""
    torch.manual_seed(2)
    for p in net.parameters():
        if not p.any():
            p.data.normal_(0, 0.1)
    return net


def test_a_new_network_is_silent_and_its_blocks_are_the_identity():
    net, (x, t, y) = small(), inputs()
    assert not net(x, t, y).any()
    block, maps = DiCoBlock(6), torch.randn(2, 6, 5, 5)
    torch.nn.init.zeros_(block.modulation.weight)
    torch.nn.init.zeros_(block.modulation.bias)
    assert torch.equal(block(maps, torch.randn(2, 6)), maps)


def test_channels_are_weighted_by_their_means():
    torch.manual_seed(0)
    attend, x = CompactAttention(6), torch.randn(2, 6, 4, 3)
    weight = (x.mean((2, 3)) @ attend.mix.weight[:, :, 0, 0].T + attend.mix.bias).sigmoid()
    torch.testing.assert_close(attend(x), x * weight[:, :, None, None])


def test_time_and_class_matter_and_attention_may_be_left_out():
    net, (x, t, y) = awake(small()), inputs()
    with torch.inference_mode():
        here = net(x, t, y)
        assert here.shape == (2, 8, 8, 8)
        assert not torch.allclose(here, net(x, t + 50, y), atol=1e-4)
        assert not torch.allclose(here, net(x, t, y - y + 1), atol=1e-4)
        assert small(learn_sigma=False, attention=False)(x, t, y).shape == x.shape
    with torch.device("meta"):
        whole, bare = DiCoBlock(16), DiCoBlock(16, attention=False)
    assert sum(p.numel() for p in whole.parameters()) == 16 * 17 + sum(
        p.numel() for p in bare.parameters()
    )


def test_sampling_runs_the_network_and_guides_it():
    net, (x, _, y) = awake(small()), inputs()
    one = net.sample(x, y, steps=3, diffusion=Diffusion(20))
    two = net.sample(x, y, steps=3, guidance=3.0, diffusion=Diffusion(20))
    assert one.shape == x.shape
    assert torch.isfinite(two).all()
    assert not torch.allclose(one, two)
    with pytest.raises(InputError, match="class_dropout"):
        small(class_dropout=0.0).sample(x, y, guidance=2.0)


def test_the_authors_names():
    net, other = awake(small()), small()
    found = names(net, "authors")
    assert found["groups.0.0.enter.weight"] == "encoder_level_1.0.conv1.weight"
    assert found["groups.2.0.attend.mix.bias"] == "latent.0.ca.1.bias"
    assert found["groups.4.0.modulation.weight"] == "decoder_level_1.0.adaLN_modulation.1.weight"
    assert found["grows.1.0.weight"] == "up2_1.body.0.weight"
    assert found["times.2.fc2.weight"] == "t_embedder_3.mlp.2.weight"
    assert found["classes.1.weight"] == "y_embedder.embedding_table_1.weight"
    assert found["head.bias"] == "final_layer.out_proj.bias"
    load_weights(other, {found[k]: v for k, v in net.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(net(*inputs()), other(*inputs()))


def test_what_it_refuses():
    x, t, y = inputs(6)
    with pytest.raises(InputError, match="multiples of 4"):
        small()(x, t, y)
    with pytest.raises(InputError, match="probability"):
        small(class_dropout=2.0)
    with pytest.raises(InputError, match="groups of blocks"):
        DiCo(8, (1, 1))
    with pytest.raises(UnknownName, match="xl"):
        dico("xxl")
    with torch.device("meta"):
        assert sum(p.numel() for p in zoo.create("dico-s").parameters()) == 33_137_672
