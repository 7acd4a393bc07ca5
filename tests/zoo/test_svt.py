"""SVT: scattering is the identity where nothing is changed; parameters by formula; its layout."""

import pytest
import torch

from paredown import zoo
from paredown.errors import InputError, UnknownName
from paredown.zoo.svt import SVT, Plan, Scattering, svt
from paredown.zoo.weights import load_weights, names

PLAN = Plan(8, (8, 8, 16, 16), (1, 1, 1, 1), (1, 1, 2, 2))


def small(**settings):
    torch.manual_seed(0)
    return SVT(PLAN, 5, 1, **{"image_size": 32, **settings})


def test_an_open_gate_without_blending_is_the_identity():
    mixer, x = Scattering(8, 12), torch.randn(2, 12, 12, 8)
    torch.nn.init.ones_(mixer.gate)
    torch.testing.assert_close(mixer(x, blended=False), x, atol=1e-5, rtol=1e-5)


def test_blending_with_unit_weights_keeps_what_relu_keeps():
    """Real unit weights, no biases: the bands' positive parts pass."""
    mixer = Scattering(8, 4)
    for blend in (mixer.blend1, mixer.blend2):
        torch.nn.init.zeros_(blend.weight)
        torch.nn.init.zeros_(blend.bias)
        blend.weight.data[0] = torch.eye(2)
    bands = torch.randn(2, 3, 8, 6, 2, 2)
    torch.testing.assert_close(mixer.blend(bands), bands.relu())


def test_blending_is_complex_multiplication_in_blocks_of_channels():
    mixer = Scattering(8, 4)
    bands = torch.randn(2, 1, 8, 6, 2, 2)
    value = torch.complex(bands[0], bands[1]).unflatten(1, (4, 2))
    weight = torch.complex(*mixer.blend1.weight).detach()
    bias = torch.complex(*mixer.blend1.bias).detach()
    want = torch.einsum("zndohw,ndk->znkohw", value, weight)
    want = (want + bias[None, :, :, None, None, None]).flatten(1, 2)
    last = bands.permute(0, 1, 3, 4, 5, 2).unflatten(-1, (4, 2))
    real, imaginary = mixer.blend1(*last)
    found = torch.complex(real, imaginary).flatten(-2).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(("channels", "side"), [(8, 4), (64, 56), (128, 28)])
def test_parameters_of_scattering_follow_the_formula(channels, side):
    with torch.device("meta"):
        mixer = Scattering(channels, side)
    found = sum(p.numel() for p in mixer.parameters())
    assert found == channels * side**2 + channels**2 + 4 * channels


def test_one_scattering_stage_is_the_released_file():
    with torch.device("meta"):
        one, bare = svt("s", scattering=1), svt("s", token_label=False)
    assert sum(p.numel() for p in one.parameters()) == 22_052_592
    assert sum(p.numel() for p in bare.parameters()) == 22_257_392 - 449_000


def test_the_answer_is_the_class_and_half_the_best_token():
    net, x = small().eval(), torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        logits, tokens = net.tokens(x)
        torch.testing.assert_close(net(x), logits + tokens.amax(1) / 2)
    assert tokens.shape == (2, 1, 5)
    with pytest.raises(InputError, match="head for tokens"):
        small(token_label=False).tokens(x)


def test_features_and_what_it_refuses():
    shapes = [tuple(m.shape[1:]) for m in small(features_only=True)(torch.zeros(1, 1, 32, 32))]
    assert shapes == [(8, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]
    with pytest.raises(InputError, match="multiple of 16"):
        small(image_size=40)
    with pytest.raises(InputError, match="image_size=48"):
        small()(torch.zeros(1, 1, 48, 48))
    with pytest.raises(InputError, match="blocks"):
        Scattering(6, 4)
    with pytest.raises(UnknownName):
        svt("m")


def test_the_authors_names_and_their_filters_left_out():
    net, other = zoo.create("svt-h-s", image_size=32), zoo.create("svt-h-s", image_size=32)
    found = names(net, "authors")
    assert found["stages.0.1.mixer.blend2.bias"] == "block1.1.attn.complex_weight_lh_b2"
    assert found["stages.2.5.mixer.kv.weight"] == "block3.5.attn.kv.weight"
    assert found["entries.0.stem.2.norm.running_var"] == "patch_embed1.conv.7.running_var"
    assert found["entries.3.norm.bias"] == "patch_embed4.norm.bias"
    assert found["last.mlp.fc1.weight"] == "post_network.0.mlp.fc1.weight"
    assert len(set(found.values())) == len(found)
    released = {found[k]: v for k, v in net.state_dict().items()}
    released["block1.0.attn.xfm.h0o"] = released["block2.3.attn.ifm.g1b"] = torch.zeros(1, 1, 13, 1)
    load_weights(other, released)
    assert torch.equal(other.stages[0][1].mixer.gate, net.stages[0][1].mixer.gate)
