"""The authors' names of released tensors: UniRepLKNet, OverLoCK, FFNet, SimpleNet, PfLayer.

As in `_layouts_convnets`. Both the form to train, with its branches, and the merged one are named.
"""

from __future__ import annotations

from torch import nn

from paredown.nn.reparam import DilatedReparamConv, RepConv
from paredown.zoo._layouts_convnets import Pairs, conv_norm
from paredown.zoo.ffnet import FFBlock, FFNet
from paredown.zoo.overlock import OverLoCK
from paredown.zoo.pflayer import PooledViT
from paredown.zoo.resnet import ResNet
from paredown.zoo.simplenet import SimpleNet
from paredown.zoo.unireplknet import UniRepLKNet


def dilated(conv: nn.Module, ours: str, theirs: str) -> Pairs:
    """A large kernel and its branches: ``lk_origin``, ``origin_bn``, ``dil_conv_k3_4``."""
    if isinstance(conv, DilatedReparamConv):
        yield f"{ours}.large.0", f"{theirs}.lk_origin"
        yield f"{ours}.large.1", f"{theirs}.origin_bn"
        for i, branch in enumerate(conv.small.children()):
            small = next(m for m in branch.children() if isinstance(m, nn.Conv2d))
            at = f"k{small.kernel_size[0]}_{small.dilation[0]}"
            yield f"{ours}.small.{i}.0", f"{theirs}.dil_conv_{at}"
            yield f"{ours}.small.{i}.1", f"{theirs}.dil_bn_{at}"
    elif isinstance(conv, nn.Conv2d) and conv.kernel_size[0] >= 7:
        yield ours, f"{theirs}.lk_origin"
    else:
        yield ours, theirs


def unireplknet(model: UniRepLKNet) -> Pairs:
    """The authors: ``downsample_layers.0.3``, ``dwconv.dil_conv_k5_1``, ``pwconv2.2``."""
    for s, stage in enumerate(model.stages.children()):
        entry = 2 if s else 5
        for i, block in enumerate(stage.children()):
            ours, theirs = f"stages.{s}.{i}", f"stages.{s}.{i - entry}"
            if i < entry:
                yield ours, f"downsample_layers.{s}.{i}"
                continue
            yield from dilated(
                block.get_submodule("depthwise"), f"{ours}.depthwise", f"{theirs}.dwconv"
            )
            yield f"{ours}.norm", f"{theirs}.norm"
            yield f"{ours}.squeeze.reduce", f"{theirs}.se.down"
            yield f"{ours}.squeeze.expand", f"{theirs}.se.up"
            yield f"{ours}.fc1", f"{theirs}.pwconv1.1"
            yield f"{ours}.response", f"{theirs}.act.1"
            yield f"{ours}.fc2", f"{theirs}.pwconv2.0"
            yield f"{ours}.norm2", f"{theirs}.pwconv2.2"
            yield f"{ours}.scale.gamma", f"{theirs}.gamma"
    yield "norm", "norm"
    yield "head", "head"


def overlock(model: OverLoCK) -> Pairs:
    """The authors: ``patch_embed1.6``, ``blocks3.0.proj.1.lk_origin``, ``sub_blocks4.0.gate.0``."""
    for s, stage in enumerate(model.base.children()):
        for i in range(4):
            yield from _indexed(f"base.{s}.0.{i}", f"patch_embed{s + 1}", 3 * i)
        yield from _indexed(f"base.{s}.0", f"patch_embed{s + 1}", 0)
        for i, block in enumerate(stage.children()):
            ours, theirs = f"base.{s}.{i}", f"blocks{s + 1}.{i - 1}"
            if not i:
                continue
            yield f"{ours}.near.conv", f"{theirs}.dwconv"
            yield from _affine(f"{ours}.skip", f"{theirs}.ls")
            yield f"{ours}.body.0", f"{theirs}.proj.0"
            conv = block.get_submodule("body.1.0")
            yield from dilated(conv, f"{ours}.body.1.0", f"{theirs}.proj.1")
            yield f"{ours}.body.1.1", f"{theirs}.proj.2"
            yield from _squeeze(f"{ours}.body.2", f"{theirs}.proj.3")
            yield from _mlp(f"{ours}.body.3", f"{theirs}.proj", 4)
    yield "to_context", "high_level_proj"
    for s, stage in enumerate(model.focus.children()):
        for i, block in enumerate(stage.children()):
            yield from _focus(block, f"focus.{s}.{i}", f"sub_blocks{s + 3}.{i}")
    yield from _indexed("shrink_x", "patch_embedx.x_proj", 0)
    yield from _indexed("shrink_context", "patch_embedx.h_proj", 0)
    yield from _indexed("head.0", "head", 0)
    yield "head.3", "head.4"
    yield "auxiliary.0", "aux_head.0"
    yield "auxiliary.3", "aux_head.2"


def _focus(block: nn.Module, ours: str, theirs: str) -> Pairs:
    """One block of the focus net."""
    yield from _affine(f"{ours}.carried", f"{theirs}.x_scale")
    yield from _affine(f"{ours}.original", f"{theirs}.h_scale")
    for n in (1, 2):
        yield f"{ours}.near{n}.conv", f"{theirs}.dwconv{n}"
        yield f"{ours}.norm{n}", f"{theirs}.norm{n}"
        yield from _affine(f"{ours}.skip{n}", f"{theirs}.ls{n}")
        yield f"{ours}.mixer.biases.{n - 1}", f"{theirs}.rpb{n}"
    yield f"{ours}.fuse_in", f"{theirs}.fusion"
    yield from _indexed(f"{ours}.mixer.query", f"{theirs}.weight_query", 0)
    yield from _indexed(f"{ours}.mixer.key", f"{theirs}.weight_key", 1)
    yield f"{ours}.mixer.kernel", f"{theirs}.weight_proj"
    yield from _indexed(f"{ours}.mixed", f"{theirs}.dyconv_proj", 0)
    yield from dilated(block.get_submodule("static.0"), f"{ours}.static.0", f"{theirs}.lepe.0")
    yield f"{ours}.static.1", f"{theirs}.lepe.1"
    yield from _squeeze(f"{ours}.squeeze", f"{theirs}.se_layer")
    yield from _indexed(f"{ours}.gate", f"{theirs}.gate", 0)
    yield f"{ours}.project", f"{theirs}.proj"
    yield from _mlp(f"{ours}.mlp", f"{theirs}.mlp", 0)


def ffnet(model: FFNet) -> Pairs:
    """The authors: ``patch_embed.2.c``, ``proj.0.conv1.bn``, ``token_mixer.0.main.fc``."""
    for s, stage in enumerate(model.stages.children()):
        layers = list(stage.children())
        first = next(i for i, m in enumerate(layers) if isinstance(m, FFBlock))
        if s:
            yield from _rep(layers[0], f"stages.{s}.0", f"stages.{s}.0.proj.0")
            yield f"stages.{s}.1.norm", f"stages.{s}.0.proj.1.conv.bn"
            yield f"stages.{s}.1.conv", f"stages.{s}.0.proj.1.conv.c"
            yield f"stages.{s}.1", f"stages.{s}.0.proj.1"
        else:
            for i in (0, 2):
                yield from _rep(layers[i], f"stages.0.{i}", f"patch_embed.{i}")
        for i, block in enumerate(layers[first:]):
            ours = f"stages.{s}.{first + i}"
            theirs = f"stages.{s}.{i + (1 if s else 0)}"
            token, channel = f"{theirs}.token_mixer.0", f"{theirs}.channel_mixer"
            for name, there in (("query", "fc"), ("keys", "conv1"), ("values", "conv2")):
                part = block.get_submodule(f"token.{name}")
                yield from _rep(part, f"{ours}.token.{name}", f"{token}.main.{there}")
            part = block.get_submodule("channel.near")
            yield from _rep(part, f"{ours}.channel.near", f"{channel}.main.conv")
            yield f"{ours}.channel", f"{channel}.main"
            yield f"{ours}.scale1.gamma", f"{token}.layer_scale"
            yield f"{ours}.scale2.gamma", f"{channel}.layer_scale"
    yield "norm", "norm"
    yield "head.2", "head"


def simplenet(model: SimpleNet) -> Pairs:
    """The authors: ``features.4`` (every layer counts, dropout and pools too), ``classifier``.

    In the networks for CIFAR the convolution before a pool has no dropout behind it.
    """
    stages, at = list(model.stages.children()), 0
    for s, stage in enumerate(stages):
        at += 2 if s else 0
        convs = [i for i, m in enumerate(stage.children()) if isinstance(m, nn.Conv2d)]
        for i in convs:
            yield f"stages.{s}.{i}", f"features.{at}"
            yield f"stages.{s}.{i + 1}", f"features.{at + 1}"
            # The early port's extra pool was put behind a convolution that kept its dropout.
            kept = len(stages) == 3 or (len(stages) == 6 and s == 3)
            at += 3 if i == convs[-1] and not kept else 4
    yield "head", "classifier"


def pooled_resnet(model: ResNet) -> Pairs:
    """The authors: ``conv1.0``, ``layer2.0.reduction_block.0``, ``conv_block.1.0``, ``fc``."""
    yield from _indexed("stem.0", "conv1", 0)
    for s, stage in enumerate(model.stages.children()):
        for b in range(len(list(stage.children()))):
            ours, theirs = f"stages.{s}.{b}", f"layer{s + 1}.{b}"
            yield from _indexed(f"{ours}.body.0", f"{theirs}.reduction_block", 0)
            yield from _indexed(f"{ours}.body.1.1", f"{theirs}.conv_block.1", 0)
            yield from _indexed(f"{ours}.body.2", f"{theirs}.expansion_block", 0)
            yield from _indexed(f"{ours}.skip", f"{theirs}.downsample", 0)
    yield "head.2", "fc"


def pooled_vit(model: PooledViT) -> Pairs:
    """The authors: ``pos_embed``, ``blocks.1.attn.qkv`` (the pooled blocks' first map, too)."""
    yield "position", "pos_embed"
    yield "embed", "patch_embed"
    for i in range(len(model.blocks)):
        yield f"blocks.{i}.attn.expand", f"blocks.{i}.attn.qkv"
        yield f"blocks.{i}.attn.project", f"blocks.{i}.attn.proj"
    for part in ("blocks", "norm", "head"):
        yield part, part


def _rep(conv: nn.Module, ours: str, theirs: str) -> Pairs:
    """A convolution and its norm ``c``, ``bn``; two branches are ``conv`` and ``conv1``."""
    branches = len(conv.branches) if isinstance(conv, RepConv) else 0
    for i in range(branches):
        at = theirs if branches == 1 else f"{theirs}.{('conv', 'conv1')[i]}"
        yield f"{ours}.branches.{i}.0", f"{at}.c"
        yield f"{ours}.branches.{i}.1", f"{at}.bn"
    if not branches:
        yield ours, theirs


def _indexed(ours: str, theirs: str, first: int) -> Pairs:
    """A convolution and the norm behind it, numbered in a ``Sequential``."""
    yield from conv_norm(ours, f"{theirs}.{first}", f"{theirs}.{first + 1}")


def _affine(ours: str, theirs: str) -> Pairs:
    yield f"{ours}.scale", f"{theirs}.weight"
    yield f"{ours}.shift", f"{theirs}.bias"


def _squeeze(ours: str, theirs: str) -> Pairs:
    yield f"{ours}.reduce", f"{theirs}.proj.1"
    yield f"{ours}.expand", f"{theirs}.proj.3"


def _mlp(ours: str, theirs: str, first: int) -> Pairs:
    """1x1, GELU, depthwise residual, response norm, 1x1."""
    for i, name in enumerate(("", None, ".conv", "", "")):
        if name is not None:
            yield f"{ours}.{i}{name}", f"{theirs}.{first + i}"
