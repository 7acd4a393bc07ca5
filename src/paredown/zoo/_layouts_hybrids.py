"""Names of released tensors (SVT, DRCT, DiCo, LeYOLO): pairs of our module (or tensor) and theirs.

As in `_layouts_convnets`: the authors' names.
"""

from __future__ import annotations

from collections.abc import Iterator

from paredown.nn.conv import ConvNormAct
from paredown.nn.inverted import InvertedResidual
from paredown.zoo.dico import DiCo
from paredown.zoo.drct import DRCT
from paredown.zoo.leyolo import LeYOLO, PyramidPool
from paredown.zoo.svt import SVT, Scattering

Pairs = Iterator[tuple[str, str]]


def svt(model: SVT) -> Pairs:
    """The authors: ``patch_embed1.conv.0``, ``block1.0.attn.complex_weight_ll``, ``aux_head``."""
    for i, stage in enumerate(model.stages):
        for k in range(3):
            yield f"entries.{i}.stem.{k}.conv", f"patch_embed{i + 1}.conv.{3 * k}"
            yield f"entries.{i}.stem.{k}.norm", f"patch_embed{i + 1}.conv.{3 * k + 1}"
        yield f"entries.{i}", f"patch_embed{i + 1}"
        for j, block in enumerate(stage.children()):
            ours, theirs = f"stages.{i}.{j}", f"block{i + 1}.{j}"
            if isinstance(block.mixer, Scattering):
                yield f"{ours}.mixer.gate", f"{theirs}.attn.complex_weight_ll"
                for n in (1, 2):
                    yield f"{ours}.mixer.blend{n}.weight", f"{theirs}.attn.complex_weight_lh_{n}"
                    yield f"{ours}.mixer.blend{n}.bias", f"{theirs}.attn.complex_weight_lh_b{n}"
            yield f"{ours}.mixer", f"{theirs}.attn"
            yield f"{ours}.mlp.conv", f"{theirs}.mlp.dwconv.dwconv"
            yield ours, theirs
        yield f"norms.{i}", f"norm{i + 1}"
    yield "last", "post_network.0"
    yield "head", "head"
    yield "token_head", "aux_head"


def drct(model: DRCT) -> Pairs:
    """The authors: ``layers.0.swin1.attn.qkv``, ``layers.0.adjust1``, ``upsample.0``."""
    yield "shallow", "conv_first"
    yield "embed_norm", "patch_embed.norm"
    for i in range(len(model.groups)):
        for k in range(5):
            ours, theirs = f"groups.{i}.layers.{k}", f"layers.{i}.swin{k + 1}"
            yield f"{ours}.attn.bias.table", f"{theirs}.attn.relative_position_bias_table"
            yield ours, theirs
            yield f"groups.{i}.narrow.{k}", f"layers.{i}.adjust{k + 1}"
    yield "norm", "norm"
    yield "after", "conv_after_body"
    yield "before", "conv_before_upsample"
    yield "grow", "upsample"
    yield "last", "conv_last"


def dico(model: DiCo) -> Pairs:
    """The authors: ``encoder_level_1.0.conv1``, ``latent.0.ca.1``, ``up3_2.body.0``."""
    yield "embed", "x_embedder.proj"
    for i in range(3):
        yield f"times.{i}.fc1", f"t_embedder_{i + 1}.mlp.0"
        yield f"times.{i}.fc2", f"t_embedder_{i + 1}.mlp.2"
        yield f"classes.{i}", f"y_embedder.embedding_table_{i}"
    places = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
    parts = {
        "enter": "conv1",
        "depthwise": "conv2",
        "leave": "conv3",
        "widen": "conv4",
        "narrow": "conv5",
        "attend.mix": "ca.1",
        "modulation": "adaLN_modulation.1",
    }
    for i, (place, group) in enumerate(zip(places, model.groups, strict=True)):
        for j, _ in enumerate(group.children()):
            for ours, theirs in parts.items():
                yield f"groups.{i}.{j}.{ours}", f"{place}.{j}.{theirs}"
    yield "shrinks.0", "down1_2.body"
    yield "shrinks.1", "down2_3.body"
    yield "grows.0", "up3_2.body"
    yield "grows.1", "up2_1.body"
    yield "merges.0", "reduce_chan_level2"
    yield "merges.1", "reduce_chan_level1"
    yield "modulation", "final_layer.adaLN_modulation.1"
    yield "head", "final_layer.out_proj"


def leyolo(model: LeYOLO) -> Pairs:
    """The authors: ``model.0.c``, ``model.5.layers.1.bn``, ``model.14.cv1``, ``model.35.cv2.0``."""
    for i, layer in enumerate(model.layers):
        ours, theirs = f"layers.{i}", f"model.{i}"
        if isinstance(layer, ConvNormAct):
            yield f"{ours}.conv", f"{theirs}.c"
            yield f"{ours}.norm", f"{theirs}.bn"
        elif isinstance(layer, PyramidPool):
            for part, name in (("enter", "cv1"), ("leave", "cv2")):
                yield f"{ours}.{part}.conv", f"{theirs}.{name}.conv"
                yield f"{ours}.{part}.norm", f"{theirs}.{name}.bn"
        elif isinstance(layer, InvertedResidual):
            expands = isinstance(layer.expand, ConvNormAct)
            for n, part in enumerate(("expand", "depthwise") if expands else ("depthwise",)):
                yield f"{ours}.{part}.conv", f"{theirs}.layers.{n}.c"
                yield f"{ours}.{part}.norm", f"{theirs}.layers.{n}.bn"
            last = 2 if expands else 1
            yield f"{ours}.project.conv", f"{theirs}.layers.{last}"
            yield f"{ours}.project.norm", f"{theirs}.layers.{last + 1}"
    head = f"model.{len(model.layers)}"
    for part, name in (("boxes", "cv2"), ("classes", "cv3")):
        for level in range(3):
            ours, theirs = f"head.{part}.{level}", f"{head}.{name}.{level}"
            for n in range(3):
                yield f"{ours}.{n}.conv", f"{theirs}.{n}.conv"
                yield f"{ours}.{n}.norm", f"{theirs}.{n}.bn"
            yield f"{ours}.3", f"{theirs}.3"
