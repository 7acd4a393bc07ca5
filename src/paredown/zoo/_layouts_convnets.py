"""Names of released convnets' tensors: pairs of our module (or tensor) and theirs.

One generator per architecture and layout; what stands below a pair keeps its name (``weight``,
``running_mean`` ...). The layouts are those of public state dicts: torchvision's and timm's.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from paredown.nn.conv import BasicBlock, Bottleneck, DenseBlock, OneShotAggregation
from paredown.nn.convnext import ConvNeXtBlock
from paredown.nn.inverted import InvertedResidual
from paredown.zoo.convnext import ConvNeXt
from paredown.zoo.densenet import DenseNet
from paredown.zoo.efficientnet import EfficientNet
from paredown.zoo.fasternet import FasterNet
from paredown.zoo.mobilenetv1 import MobileNetV1
from paredown.zoo.mobilenetv2 import MobileNetV2
from paredown.zoo.mobilenetv3 import MobileNetV3
from paredown.zoo.regnet import RegNetX
from paredown.zoo.resnet import ResNet
from paredown.zoo.vovnet import VoVNet

Pairs = Iterator[tuple[str, str]]


def conv_norm(ours: str, conv: str, norm: str) -> Pairs:
    """A ``ConvNormAct`` whose convolution and norm have these names there."""
    yield f"{ours}.conv", conv
    yield f"{ours}.norm", norm


def resnet(model: ResNet) -> Pairs:
    """Torchvision and timm, ResNeXt too: ``layer1.0.conv1``, ``bn1``, ``downsample.0``, ``fc``."""
    yield from conv_norm("stem.0", "conv1", "bn1")
    for s, stage in enumerate(model.stages.children()):
        for b, block in enumerate(stage.children()):
            assert isinstance(block, (BasicBlock, Bottleneck))
            ours, theirs = f"stages.{s}.{b}", f"layer{s + 1}.{b}"
            for i in range(len(block.body)):
                yield from conv_norm(
                    f"{ours}.body.{i}", f"{theirs}.conv{i + 1}", f"{theirs}.bn{i + 1}"
                )
            yield from conv_norm(f"{ours}.skip", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    yield "head.2", "fc"


def regnet_timm(model: RegNetX) -> Pairs:
    """timm: ``s1.b1.conv1.conv``, ``s1.b1.conv1.bn``, ``s1.b1.downsample.conv``, ``head.fc``."""
    yield from conv_norm("stem", "stem.conv", "stem.bn")
    for s, stage in enumerate(model.stages.children()):
        for b in range(len(list(stage.children()))):
            ours, theirs = f"stages.{s}.{b}", f"s{s + 1}.b{b + 1}"
            for i in range(3):
                at = f"{theirs}.conv{i + 1}"
                yield from conv_norm(f"{ours}.body.{i}", f"{at}.conv", f"{at}.bn")
            at = f"{theirs}.downsample"
            yield from conv_norm(f"{ours}.skip", f"{at}.conv", f"{at}.bn")
    yield "head.2", "head.fc"


def vovnet_timm(model: VoVNet) -> Pairs:
    """timm: ``stem.0.conv``, ``stages.0.blocks.0.conv_mid.0.conv``, ``conv_concat.conv``."""
    for i in range(len(model.stem)):
        yield from conv_norm(f"stem.{i}", f"stem.{i}.conv", f"stem.{i}.bn")
    for s, stage in enumerate(model.stages.children()):
        number = 0
        for i, block in enumerate(stage.children()):
            if not isinstance(block, OneShotAggregation):
                continue
            ours, theirs = f"stages.{s}.{i}", f"stages.{s}.blocks.{number}"
            for j in range(len(block.chain)):
                at = f"{theirs}.conv_mid.{j}"
                yield from conv_norm(f"{ours}.chain.{j}", f"{at}.conv", f"{at}.bn")
            at = f"{theirs}.conv_concat"
            yield from conv_norm(f"{ours}.mix", f"{at}.conv", f"{at}.bn")
            number += 1
    yield "head.2", "head.fc"


def densenet(model: DenseNet) -> Pairs:
    """Torchvision and timm: ``features.denseblock1.denselayer1.norm1``, ``transition1.conv``."""
    yield "stem.0", "features.conv0"
    yield "stem.1", "features.norm0"
    block = 0
    for i, part in enumerate(model.body.children()):
        if isinstance(part, DenseBlock):
            block += 1
            for j in range(len(part.layers)):
                there = f"features.denseblock{block}.denselayer{j + 1}"
                yield f"body.{i}.layers.{j}", there
        else:
            yield f"body.{i}.0", f"features.transition{block}.norm"
            yield f"body.{i}.2", f"features.transition{block}.conv"
    yield "norm", "features.norm5"
    yield "head.2", "classifier"


def mobilenetv1_timm(model: MobileNetV1) -> Pairs:
    """timm: ``blocks.1.0.conv_dw``, ``bn1``, ``conv_pw``, ``bn2``; a stage begins at a stride."""
    yield from conv_norm("stem", "conv_stem", "bn1")
    stage, number = 0, -1
    for i in range(len(model.blocks)):
        if i - 1 in model.taps:
            stage, number = stage + 1, -1
        number += 1
        at = f"blocks.{stage}.{number}"
        yield from conv_norm(f"blocks.{i}.0", f"{at}.conv_dw", f"{at}.bn1")
        yield from conv_norm(f"blocks.{i}.1", f"{at}.conv_pw", f"{at}.bn2")
    yield "head.2", "classifier"


def mobilenetv2_torchvision(model: MobileNetV2) -> Pairs:
    """torchvision: ``features.2.conv.0.0`` (expansion), ``conv.1.0`` (depthwise), ``conv.2``."""
    yield from conv_norm("stem", "features.0.0", "features.0.1")
    for i, block in enumerate(model.blocks.children()):
        assert isinstance(block, InvertedResidual)
        ours, theirs = f"blocks.{i}", f"features.{i + 1}.conv"
        first = 0 if isinstance(block.expand, nn.Identity) else 1
        if first:
            yield from conv_norm(f"{ours}.expand", f"{theirs}.0.0", f"{theirs}.0.1")
        yield from conv_norm(f"{ours}.depthwise", f"{theirs}.{first}.0", f"{theirs}.{first}.1")
        yield from conv_norm(f"{ours}.project", f"{theirs}.{first + 1}", f"{theirs}.{first + 2}")
    last = len(model.blocks) + 1
    yield from conv_norm("last", f"features.{last}.0", f"features.{last}.1")
    yield f"head.{len(model.head) - 1}", "classifier.1"


def mobilenetv3_torchvision(model: MobileNetV3) -> Pairs:
    """torchvision: ``features.4.block.0.0`` (expansion), ``.1.0``, ``.2.fc1`` (gate), ``.3.0``."""
    yield from conv_norm("stem", "features.0.0", "features.0.1")
    for i, block in enumerate(model.blocks.children()):
        yield from _inverted(block, f"blocks.{i}", f"features.{i + 1}.block")
    last = len(model.blocks) + 1
    yield from conv_norm("last", f"features.{last}.0", f"features.{last}.1")
    yield "head.2", "classifier.0"
    yield "head.5", "classifier.3"


def efficientnet_torchvision(model: EfficientNet) -> Pairs:
    """torchvision: ``features.2.0.block...``, one number for the row, one for the block."""
    yield from conv_norm("stem", "features.0.0", "features.0.1")
    row, number = 0, 0
    for i, block in enumerate(model.blocks.children()):
        assert isinstance(block, InvertedResidual)
        # The first block of a row changes the channels, so it has no skip.
        row, number = (row, number + 1) if block.thin_skip else (row + 1, 0)
        yield from _inverted(block, f"blocks.{i}", f"features.{row}.{number}.block")
    yield from conv_norm("last", f"features.{row + 1}.0", f"features.{row + 1}.1")
    yield "head.3", "classifier.1"


def _inverted(block: nn.Module, ours: str, theirs: str) -> Pairs:
    """Torchvision's MBConv: its parts numbered in turn, the absent ones skipped."""
    assert isinstance(block, InvertedResidual)
    at = 0
    for part in ("expand", "depthwise", "squeeze", "project"):
        if isinstance(getattr(block, part), nn.Identity):
            continue
        if part == "squeeze":
            yield f"{ours}.squeeze.reduce", f"{theirs}.{at}.fc1"
            yield f"{ours}.squeeze.expand", f"{theirs}.{at}.fc2"
        else:
            yield from conv_norm(f"{ours}.{part}", f"{theirs}.{at}.0", f"{theirs}.{at}.1")
        at += 1


def convnext_timm(model: ConvNeXt) -> Pairs:
    """timm: ``stages.1.downsample.0``, ``stages.1.blocks.0.conv_dw``, ``mlp.fc1``, ``head.fc``."""
    parts = ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma")
    yield from _convnext(model, parts, "stages.{s}.blocks.{b}", "stages.{s}.downsample.{i}")
    yield "stem", "stem"
    yield "norm", "head.norm"
    yield "head", "head.fc"


def convnext_torchvision(model: ConvNeXt) -> Pairs:
    """torchvision: ``features.1.0.block.0``, ``layer_scale``, ``features.2.0``, ``classifier``."""
    parts = ("block.0", "block.2", "block.3", "block.5", "layer_scale")
    yield from _convnext(model, parts, "features.{odd}.{b}", "features.{even}.{i}")
    yield "stem", "features.0"
    yield "norm", "classifier.0"
    yield "head", "classifier.2"


def convnext_authors(model: ConvNeXt) -> Pairs:
    """The authors' release: ``downsample_layers.1.0``, ``stages.1.0.dwconv``, ``pwconv1``."""
    parts = ("dwconv", "norm", "pwconv1", "pwconv2", "gamma")
    yield from _convnext(model, parts, "stages.{s}.{b}", "downsample_layers.{s}.{i}")
    yield "stem", "downsample_layers.0"
    yield "norm", "norm"
    yield "head", "head"


def _convnext(model: ConvNeXt, parts: tuple[str, ...], block: str, merge: str) -> Pairs:
    stage, number, step = 0, 0, 0
    for i, layer in enumerate(model.body.children()):
        if isinstance(layer, ConvNeXtBlock):
            at = block.format(s=stage, b=number, odd=2 * stage + 1)
            for ours, theirs in zip(
                ("depthwise", "norm", "fc1", "fc2", "gamma"), parts, strict=True
            ):
                yield f"body.{i}.{ours}", f"{at}.{theirs}"
            number, step = number + 1, 0
        else:
            stage, number = (stage + 1, 0) if step == 0 else (stage, 0)
            yield f"body.{i}", merge.format(s=stage, i=step, even=2 * stage)
            step += 1


def fasternet_timm(model: FasterNet) -> Pairs:
    """timm: ``stages.1.downsample.reduction``, ``blocks.0.spatial_mixing.partial_conv3``."""
    yield from conv_norm("stages.0.0", "patch_embed.proj", "patch_embed.norm")
    for s, stage in enumerate(model.stages.children()):
        if s:
            at = f"stages.{s}.downsample"
            yield from conv_norm(f"stages.{s}.0", f"{at}.reduction", f"{at}.norm")
        for b in range(len(list(stage.children())) - 1):
            ours, theirs = f"stages.{s}.{b + 1}", f"stages.{s}.blocks.{b}"
            yield f"{ours}.mixer.conv", f"{theirs}.spatial_mixing.partial_conv3"
            yield from conv_norm(f"{ours}.expand", f"{theirs}.mlp.0", f"{theirs}.mlp.1")
            yield f"{ours}.project", f"{theirs}.mlp.3"
    yield "head.1", "conv_head"
    yield "head.4", "classifier"
