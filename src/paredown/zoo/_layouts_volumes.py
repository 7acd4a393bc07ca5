"""Names of released tensors of networks for clips and volumes: pairs of our module and theirs."""

from __future__ import annotations

from torch import nn

from paredown.zoo._layouts_convnets import Pairs, conv_norm
from paredown.zoo.p3d_resnet import P3DResNet


def p3d_port(model: P3DResNet) -> Pairs:
    """qijiezhao/pseudo-3d-pytorch: ``conv1_custom``, ``layer1.0.conv2``, ``layer4.0.conv_normal``.

    The file that the authors' Caffe weights were carried to.
    """
    yield from conv_norm("stem", "conv1_custom", "bn1")
    stages: list[tuple[str, nn.Module]] = [
        *((f"stages.{i}", s) for i, s in enumerate(model.stages)),
        ("last", model.last),
    ]
    for s, (name, stage) in enumerate(stages):
        for b in range(len(list(stage.children()))):
            ours, theirs = f"{name}.{b}", f"layer{s + 1}.{b}"
            yield from conv_norm(f"{ours}.reduce", f"{theirs}.conv1", f"{theirs}.bn1")
            if name == "last":
                at = f"{theirs}.conv_normal", f"{theirs}.bn_normal"
                yield from conv_norm(f"{ours}.unit", *at)
            else:
                yield from conv_norm(f"{ours}.unit.spatial", f"{theirs}.conv2", f"{theirs}.bn2")
                yield from conv_norm(f"{ours}.unit.temporal", f"{theirs}.conv3", f"{theirs}.bn3")
            yield from conv_norm(f"{ours}.expand", f"{theirs}.conv4", f"{theirs}.bn4")
            yield from conv_norm(f"{ours}.skip", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    yield "head.1", "fc"
