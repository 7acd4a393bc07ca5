"""Names of timm's tensors (GhostNetV2, InceptionNeXt, ConViT, Inception, NASNet): ours and theirs.

As in `_layouts_convnets`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from paredown.nn.conv import ConvNormAct
from paredown.zoo._layouts_convnets import Pairs, conv_norm
from paredown.zoo.convit import ConViT
from paredown.zoo.ghostnetv2 import GhostNetV2
from paredown.zoo.inception_v4 import Inception, ScaledResidual
from paredown.zoo.inceptionnext import InceptionNeXt
from paredown.zoo.nasnet import NASNet, NormalCell

GATE = ("mix", "row", "column")


def ghostnetv2(model: GhostNetV2) -> Pairs:
    """timm: ``blocks.3.0.ghost1.primary_conv.0``, ``short_conv.2``, ``se.conv_reduce``."""
    yield from conv_norm("stages.0.0", "conv_stem", "bn1")
    for s, stage in enumerate(model.stages.children()):
        for b in range(len(list(stage.children()))):
            ours = f"stages.{s}.{b}"
            # A strided block is a stage of its own there, those behind it are the next.
            theirs = f"blocks.{2 * s - 1}.0" if s and not b else f"blocks.{2 * s}.{b - 1}"
            for part, ghost in (("expand", "ghost1"), ("project", "ghost2")):
                for half, name in (("primary", "primary_conv"), ("cheap", "cheap_operation")):
                    at = f"{theirs}.{ghost}.{name}"
                    yield from conv_norm(f"{ours}.{part}.{half}", f"{at}.0", f"{at}.1")
            for i, step in enumerate(GATE):
                at = f"{theirs}.ghost1.short_conv"
                yield from conv_norm(
                    f"{ours}.attention.{step}", f"{at}.{2 * i}", f"{at}.{2 * i + 1}"
                )
            yield from conv_norm(f"{ours}.depthwise", f"{theirs}.conv_dw", f"{theirs}.bn_dw")
            yield f"{ours}.squeeze.reduce", f"{theirs}.se.conv_reduce"
            yield f"{ours}.squeeze.expand", f"{theirs}.se.conv_expand"
            for i in range(2):
                at = f"{theirs}.shortcut"
                yield from conv_norm(f"{ours}.skip.{i}", f"{at}.{2 * i}", f"{at}.{2 * i + 1}")
    last = f"blocks.{2 * len(model.stages) - 1}.0"
    yield from conv_norm("head.0", f"{last}.conv", f"{last}.bn1")
    yield "head.2", "conv_head"
    yield "head.6", "classifier"


def inceptionnext(model: InceptionNeXt) -> Pairs:
    """timm: ``stages.1.downsample.1``, ``blocks.0.token_mixer.dwconv_hw``, ``head.fc1``."""
    for s, stage in enumerate(model.stages.children()):
        entry = f"stages.{s}.downsample" if s else "stem"
        for i in range(2):
            yield f"stages.{s}.{i}", f"{entry}.{i}"
        for b in range(2, len(list(stage.children()))):
            ours, theirs = f"stages.{s}.{b}", f"stages.{s}.blocks.{b - 2}"
            for part, name in (("square", "hw"), ("row", "w"), ("column", "h")):
                yield f"{ours}.mixer.{part}", f"{theirs}.token_mixer.dwconv_{name}"
            yield f"{ours}.scale.gamma", f"{theirs}.gamma"
            yield ours, theirs
    for ours, theirs in (("head.0", "fc1"), ("head.2", "norm"), ("head.3", "fc2")):
        yield ours, f"head.{theirs}"


def convit(model: ConViT) -> Pairs:
    """The authors and timm: ``blocks.0.attn.pos_proj``, ``blocks.0.attn.gating_param``."""
    yield "cls", "cls_token"
    yield "position", "pos_embed"
    yield "embed", "patch_embed"
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}.attention", f"blocks.{i}.attn"
        yield f"{ours}.gate", f"{theirs}.gating_param"
        yield f"{ours}.position", f"{theirs}.pos_proj"
        yield ours, theirs
        yield f"blocks.{i}", f"blocks.{i}"
    yield "norm", "norm"
    yield "head", "head"


# Convolutions of timm's Inception blocks, in the order of their definition (and of ours).
A = "branch0 branch1.0 branch1.1 branch2.0 branch2.1 branch2.2 branch3.1"
REDUCE_A = "branch0 branch1.0 branch1.1 branch1.2"
B = f"{REDUCE_A} branch2.0 branch2.1 branch2.2 branch2.3 branch2.4 branch3.1"
REDUCE_B = "branch0.0 branch0.1 branch1.0 branch1.1 branch1.2 branch1.3"
C = (
    "branch0 branch1_0 branch1_1a branch1_1b "
    "branch2_0 branch2_1 branch2_2 branch2_3a branch2_3b branch3.1"
)
RESIDUAL_A = "branch0 branch1.0 branch1.1 branch2.0 branch2.1 branch2.2"
RESIDUAL_LINE = REDUCE_A
REDUCE_RESIDUAL = "branch0.0 branch0.1 branch1.0 branch1.1 branch2.0 branch2.1 branch2.2"


def inception(model: Inception) -> Pairs:
    """timm: ``features.7.branch1.0.conv`` of v4, ``repeat_1.3.branch1.2.conv`` of ResNet-v2.

    Inception-ResNet-v1 was released in neither's layout and keeps its own names.
    """
    residuals = [n for n, m in model.named_modules() if isinstance(m, ScaledResidual)]
    # Blocks of each resolution, less the stem's parts or the reduction.
    blocks = [len(list(stage.children())) for stage in model.stages.children()]
    if not residuals:
        theirs = list(_v4(blocks[0] - 1, blocks[1] - 1, blocks[2] - 1))
        yield from _last(model.head, "last_linear")
    elif isinstance(model.last, nn.Identity):
        yield "stages", "stages"
        yield "head", "head"
        return
    else:
        theirs, groups = list(_resnet_v2(blocks[0] - 3, blocks[1] - 1, blocks[2] - 1)), list[str]()
        for name in theirs:
            at = name.partition(".branch")[0]
            if at.startswith(("repeat", "block8")) and at not in groups:
                groups.append(at)
        for ours, at in zip(residuals, groups, strict=True):
            yield f"{ours}.expand", f"{at}.conv2d"
        yield from _last(model.head, "classif")
    convs = [n for n, m in model.named_modules() if isinstance(m, ConvNormAct)]
    for ours, at in zip(convs, theirs, strict=True):
        yield from conv_norm(ours, f"{at}.conv", f"{at}.bn")


def _v4(a: int, b: int, c: int) -> Iterator[str]:
    """Names of v4's convolutions; ``a``, ``b`` and ``c`` are the repeats."""
    yield from (f"features.{i}" for i in range(3))
    yield "features.3.conv"
    mixed = "branch0.0 branch0.1 branch1.0 branch1.1 branch1.2 branch1.3"
    yield from (f"features.4.{k}" for k in mixed.split())
    yield "features.5.conv"
    rest = [*[A] * a, REDUCE_A, *[B] * b, REDUCE_B, *[C] * c]
    for n, block in enumerate(rest, start=6):
        yield from (f"features.{n}.{k}" for k in block.split())


def _resnet_v2(a: int, b: int, c: int) -> Iterator[str]:
    """Names of Inception-ResNet-v2's convolutions."""
    yield from (f"conv2d_{k}" for k in ("1a", "2a", "2b", "3b", "4a"))
    rest = [("mixed_5b", A), *((f"repeat.{i}", RESIDUAL_A) for i in range(a))]
    rest += [("mixed_6a", REDUCE_A), *((f"repeat_1.{i}", RESIDUAL_LINE) for i in range(b))]
    rest += [("mixed_7a", REDUCE_RESIDUAL)]
    rest += [*((f"repeat_2.{i}", RESIDUAL_LINE) for i in range(c - 1)), ("block8", RESIDUAL_LINE)]
    for at, block in rest:
        yield from (f"{at}.{k}" for k in block.split())
    yield "conv2d_7b"


# NASNet's operations: ours and timm's.
NORMAL = {
    "wide_now": "0_left",
    "near_before": "0_right",
    "wide_before": "1_left",
    "near_before2": "1_right",
    "near_now": "4_left",
}
REDUCTION = {
    "wide_now": "0_left",
    "widest_before": "0_right",
    "widest_before2": "1_right",
    "wide_before": "2_right",
    "near": "4_left",
}
SEPARABLE = {
    1: "separable_1.depthwise_conv2d",
    2: "separable_1.pointwise_conv2d",
    3: "bn_sep_1",
    5: "separable_2.depthwise_conv2d",
    6: "separable_2.pointwise_conv2d",
    7: "bn_sep_2",
}


def nasnet(model: NASNet) -> Pairs:
    """timm: ``cell_0.comb_iter_0_left.separable_1.depthwise_conv2d``, ``cell_0.path_1.conv``."""
    yield "stem.0", "conv0.conv"
    yield "stem.1", "conv0.bn"
    counted = {"cell": 0, "reduction_cell": 0}
    for i, cell in enumerate(model.cells.children()):
        kind = "cell" if isinstance(cell, NormalCell) else "reduction_cell"
        if model.imagenet and i < 2:
            theirs = f"cell_stem_{i}"
        else:
            theirs = f"{kind}_{counted[kind]}"
            counted[kind] += 1
        ours = f"cells.{i}"
        for k, part in ((1, "conv"), (2, "bn")):
            yield f"{ours}.now.{k}", f"{theirs}.conv_1x1.{part}"
            yield f"{ours}.before.{k}", f"{theirs}.conv_prev_1x1.{part}"
        yield f"{ours}.before.even", f"{theirs}.path_1.conv"
        yield f"{ours}.before.odd", f"{theirs}.path_2.conv"
        yield f"{ours}.before.norm", f"{theirs}.final_path_bn"
        operations = NORMAL if kind == "cell" else REDUCTION
        for name, at in operations.items():
            for k, part in SEPARABLE.items():
                yield f"{ours}.{name}.{k}", f"{theirs}.comb_iter_{at}.{part}"
    yield from _last(model.head, "last_linear")


def _last(head: nn.Sequential | None, theirs: str) -> Pairs:
    """The classifier's linear map, behind a dropout or not."""
    if head is not None:
        yield f"head.{len(head) - 1}", theirs
