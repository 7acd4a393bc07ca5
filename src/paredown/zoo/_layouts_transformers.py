"""Names of released transformers' tensors: pairs of our module (or tensor) and theirs.

As in `_layouts_convnets`. timm's names of DeiT, Swin and MLP-Mixer, torchvision's of Swin, and the
authors' of DiT.
"""

from __future__ import annotations

from collections.abc import Iterator

from paredown.zoo.dit import DiT
from paredown.zoo.mlp_mixer import MlpMixer
from paredown.zoo.swin import PatchMerging, Swin
from paredown.zoo.vit import ViT

Pairs = Iterator[tuple[str, str]]


def vit(model: ViT) -> Pairs:
    """timm, and the authors of DeiT: ``cls_token``, ``blocks.0.attn.qkv``, ``head_dist``."""
    yield "cls", "cls_token"
    yield "distil", "dist_token"
    yield "position", "pos_embed"
    yield "embed", "patch_embed.proj"
    yield "blocks", "blocks"
    yield "norm", "norm"
    yield "head", "head"
    yield "distil_head", "head_dist"


def swin_timm(model: Swin) -> Pairs:
    """timm: ``layers.1.downsample.reduction``, ``layers.1.blocks.0.attn.qkv``, ``head.fc``."""
    yield "embed", "patch_embed.proj"
    yield "embed_norm", "patch_embed.norm"
    for s, number, ours, merging in _swin(model):
        if merging:
            yield f"{ours}.norm", f"layers.{s}.downsample.norm"
            yield f"{ours}.reduce", f"layers.{s}.downsample.reduction"
        else:
            theirs = f"layers.{s}.blocks.{number}"
            yield f"{ours}.attn.bias.table", f"{theirs}.attn.relative_position_bias_table"
            yield ours, theirs
    yield "norm", "norm"
    yield "head", "head.fc"


def swin_torchvision(model: Swin) -> Pairs:
    """torchvision: ``features.1.0.attn.qkv``, ``mlp.0``, ``features.2.reduction``, ``head``."""
    yield "embed", "features.0.0"
    yield "embed_norm", "features.0.2"
    for s, number, ours, merging in _swin(model):
        if merging:
            yield f"{ours}.norm", f"features.{2 * s}.norm"
            yield f"{ours}.reduce", f"features.{2 * s}.reduction"
        else:
            theirs = f"features.{2 * s + 1}.{number}"
            yield f"{ours}.attn.bias.table", f"{theirs}.attn.relative_position_bias_table"
            yield f"{ours}.mlp.fc1", f"{theirs}.mlp.0"
            yield f"{ours}.mlp.fc2", f"{theirs}.mlp.3"
            yield ours, theirs
    yield "norm", "norm"
    yield "head", "head"


def _swin(model: Swin) -> Iterator[tuple[int, int, str, bool]]:
    """Stage, number of the block in it, our name, whether it is a merging."""
    for s, stage in enumerate(model.stages):
        first = 1 if s else 0
        for i, layer in enumerate(stage.children()):
            yield s, i - first, f"stages.{s}.{i}", isinstance(layer, PatchMerging)


def mixer(model: MlpMixer) -> Pairs:
    """timm: ``stem.proj``, ``blocks.0.mlp_tokens.fc1``, ``blocks.0.mlp_channels.fc1``."""
    yield "embed", "stem"
    for i in range(len(model.blocks)):
        yield f"blocks.{i}.token_mlp", f"blocks.{i}.mlp_tokens"
        yield f"blocks.{i}.channel_mlp", f"blocks.{i}.mlp_channels"
    yield "blocks", "blocks"
    yield "norm", "norm"
    yield "head", "head"


def dit(model: DiT) -> Pairs:
    """The authors' release: ``t_embedder.mlp.0``, ``blocks.0.adaLN_modulation.1``."""
    yield "embed", "x_embedder"
    yield "time.fc1", "t_embedder.mlp.0"
    yield "time.fc2", "t_embedder.mlp.2"
    yield "classes", "y_embedder.embedding_table"
    for i in range(len(model.blocks)):
        yield f"blocks.{i}.modulation", f"blocks.{i}.adaLN_modulation.1"
    yield "blocks", "blocks"
    yield "modulation", "final_layer.adaLN_modulation.1"
    yield "head", "final_layer.linear"
