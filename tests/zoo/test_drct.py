"""DRCT: dense reading, a silent group is the identity, sides scaled exactly, the authors' names."""

import pytest
import torch

from paredown.errors import InputError, UnknownName
from paredown.zoo.drct import DRCT, DenseGroup, drct, heads_for
from paredown.zoo.weights import load_weights, names


def small(**settings):
    torch.manual_seed(0)
    few = {"width": 12, "growth": 6, "num_heads": 6, "window": 4, "image_size": 8, "features": 8}
    return DRCT(2, 3, **{**few, **settings}).eval()


def test_heads_follow_the_width():
    assert [heads_for(180 + 32 * i, 6) for i in range(5)] == [6, 4, 2, 6, 4]


def test_a_group_whose_last_convolution_is_zero_is_the_identity():
    group, x = DenseGroup(12, 6, 6, 4, (8, 8)), torch.randn(2, 8, 8, 12)
    torch.nn.init.zeros_(group.narrow[4].weight)
    torch.nn.init.zeros_(group.narrow[4].bias)
    assert torch.equal(group(x), x)


def test_the_last_layer_reads_every_earlier_one():
    group, x = DenseGroup(12, 6, 6, 4, (8, 8)).eval(), torch.randn(1, 8, 8, 12)
    taken = []
    group.layers[4].register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    group(x)
    first = group.narrow[0](group.layers[0](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert taken[0].shape[-1] == 12 + 4 * 6
    assert torch.equal(taken[0][..., :12], x)
    torch.testing.assert_close(taken[0][..., 12:18], torch.nn.functional.leaky_relu(first, 0.2))
    shifts = [layer.attn.shift for layer in group.layers]
    assert shifts == [0, 2, 0, 2, 0]
    hidden = [layer.mlp.fc1.out_features / layer.mlp.fc1.in_features for layer in group.layers]
    assert hidden == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sides_grow_exactly(scale):
    net = small(scale=scale)
    with torch.inference_mode():
        assert net(torch.rand(1, 3, 8, 5)).shape == (1, 3, 8 * scale, 5 * scale)


def test_the_mean_colour_passes_a_silent_network():
    net = small()
    torch.nn.init.zeros_(net.last.weight)
    torch.nn.init.zeros_(net.last.bias)
    with torch.inference_mode():
        out = net(torch.rand(2, 3, 8, 8))
    assert torch.equal(out, net.mean.expand_as(out))


def test_intensity_is_probed_behind_every_group():
    net, x = small(), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        found = net.intensities(x)
        for group in net.groups:
            torch.nn.init.zeros_(group.narrow[4].weight)
            torch.nn.init.zeros_(group.narrow[4].bias)
        flat = net.intensities(x)
    assert found.shape == (2,)
    assert flat[0] == flat[1]
    assert not torch.equal(found, flat)


def test_the_authors_names():
    net, other = small(), small()
    found = names(net, "authors")
    assert found["groups.1.layers.3.attn.bias.table"] == (
        "layers.1.swin4.attn.relative_position_bias_table"
    )
    assert found["groups.0.layers.0.mlp.fc2.bias"] == "layers.0.swin1.mlp.fc2.bias"
    assert found["groups.0.narrow.4.weight"] == "layers.0.adjust5.weight"
    assert found["grow.2.weight"] == "upsample.2.weight"
    assert found["before.0.bias"] == "conv_before_upsample.0.bias"
    released = {found[k]: v + 1 for k, v in net.state_dict().items()}
    released["layers.0.swin2.attn_mask"] = torch.zeros(4, 16, 16)
    released["layers.0.swin2.attn.relative_position_index"] = torch.zeros(16, 16)
    load_weights(other, released)
    assert torch.equal(other.groups[0].narrow[4].bias, net.groups[0].narrow[4].bias + 1)


def test_what_it_refuses():
    with pytest.raises(InputError, match="2, 3 or 4"):
        small(scale=8)
    with pytest.raises(UnknownName, match="base"):
        drct("bass")
