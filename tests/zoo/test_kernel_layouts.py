"""The authors' names, of networks to train and merged ones: whole, and each used once."""

import pytest
import torch

from paredown import zoo
from paredown.zoo.weights import load_weights, names

KNOWN = {
    "unireplknet-t": {
        "stages.0.0.weight": "downsample_layers.0.0.weight",
        "stages.0.3.bias": "downsample_layers.0.3.bias",
        "stages.2.2.depthwise.small.3.0.weight": "stages.2.0.dwconv.dil_conv_k3_4.weight",
        "stages.2.2.depthwise.large.1.running_var": "stages.2.0.dwconv.origin_bn.running_var",
        "stages.2.3.depthwise.weight": "stages.2.1.dwconv.weight",
        "stages.2.3.response.beta": "stages.2.1.act.1.beta",
        "stages.2.3.scale.gamma": "stages.2.1.gamma",
        "norm.weight": "norm.weight",
    },
    "unireplknet-a-merged": {
        "stages.0.5.depthwise.bias": "stages.0.0.dwconv.bias",
        "stages.1.2.depthwise.weight": "stages.1.0.dwconv.lk_origin.weight",
        "stages.1.2.fc2.bias": "stages.1.0.pwconv2.0.bias",
    },
    "overlock-xt": {
        "base.0.0.2.conv.weight": "patch_embed1.6.weight",
        "base.0.0.3.norm.bias": "patch_embed1.10.bias",
        "base.3.0.norm.bias": "patch_embed4.1.bias",
        "base.2.3.skip.scale": "blocks3.2.ls.weight",
        "base.2.3.body.1.0.small.2.1.weight": "blocks3.2.proj.1.dil_bn_k7_2.weight",
        "base.2.3.body.3.2.conv.bias": "blocks3.2.proj.6.bias",
        "focus.1.0.mixer.biases.1": "sub_blocks4.0.rpb2",
        "focus.1.0.mixer.key.norm.weight": "sub_blocks4.0.weight_key.2.weight",
        "focus.0.1.original.shift": "sub_blocks3.1.h_scale.bias",
        "shrink_context.conv.weight": "patch_embedx.h_proj.0.weight",
        "auxiliary.3.bias": "aux_head.2.bias",
    },
    "overlock-xt-merged": {
        "focus.0.0.static.0.weight": "sub_blocks3.0.lepe.0.lk_origin.weight",
    },
    "ffnet-2": {
        "stages.0.2.branches.0.1.weight": "patch_embed.2.bn.weight",
        "stages.1.0.branches.1.0.weight": "stages.1.0.proj.0.conv1.c.weight",
        "stages.1.1.norm.bias": "stages.1.0.proj.1.conv.bn.bias",
        "stages.2.2.token.keys.branches.0.1.bias":
            "stages.2.1.token_mixer.0.main.conv1.conv.bn.bias",
        "stages.0.3.token.keys.bias": "stages.0.0.token_mixer.0.main.conv1.bias",
        "stages.0.3.channel.fc2.bias": "stages.0.0.channel_mixer.main.fc2.bias",
        "head.2.weight": "head.weight",
    },
    "simplenet-5m-m1": {
        "stages.0.4.bias": "features.5.bias",
        "stages.1.2.weight": "features.26.weight",
        "stages.2.9.running_var": "features.53.running_var",
        "head.bias": "classifier.bias",
    },
    "simplenet-cifar-5m": {
        "stages.0.9.weight": "features.12.weight",
        "stages.1.2.weight": "features.17.weight",
        "stages.4.2.weight": "features.52.weight",
    },
    "resnet50-hybrid": {
        "stem.0.norm.bias": "conv1.1.bias",
        "stages.1.0.body.1.1.conv.weight": "layer2.0.conv_block.1.0.weight",
        "stages.1.0.skip.norm.weight": "layer2.0.downsample.1.weight",
        "stages.3.2.body.2.norm.running_mean": "layer4.2.expansion_block.1.running_mean",
        "head.2.bias": "fc.bias",
    },
    "vit-ti-max": {
        "blocks.0.attn.qkv.weight": "blocks.0.attn.qkv.weight",
        "blocks.1.attn.expand.weight": "blocks.1.attn.qkv.weight",
        "embed.proj.bias": "patch_embed.proj.bias",
    },
    "ffnet-3": {"stages.3.2.scale2.gamma": "stages.3.1.channel_mixer.layer_scale"},
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_every_tensor_has_a_name_of_its_own(name):
    with torch.device("meta"):
        found = names(zoo.create(name), "authors")
    assert {k: found[k] for k in KNOWN[name]} == KNOWN[name]
    assert len(set(found.values())) == len(found)
    # Nothing keeps a name that only our blocks have.
    ours = ("depthwise", "small.", "large.", "base.", "focus.", "branches", "squeeze", "near")
    assert not [v for v in found.values() if any(part in v for part in ours)]


def test_scales_of_another_form_are_taken():
    with torch.device("meta"):
        net = zoo.create("overlock-xt", num_classes=3)
        found = names(net, "authors")
        released = {
            found[k]: torch.empty(v.shape[0], 1, 1, 1) if k.endswith("scale") else v
            for k, v in net.state_dict().items()
        }
        # Their heads are 1x1 convolutions.
        released["head.4.weight"] = released["head.4.weight"][:, :, None, None]
        load_weights(net, released)
