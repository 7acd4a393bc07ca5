"""Names of released tensors of the auto-encoders: pairs of our module and theirs."""

from __future__ import annotations

from torch import nn

from paredown.zoo._layouts_convnets import Pairs
from paredown.zoo.sd_vae import Double, Halve, PixelAttention, ResidualBlock, SdVae
from paredown.zoo.vitok import ViTok

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}


def vitok(model: ViTok) -> Pairs:
    """The authors' first PyTorch code: ``tubelet_embed.proj``, ``encoder.blocks.0.mlp.fc3``."""
    yield "embed", "tubelet_embed.proj"
    yield "narrow", "encoder_to_code"
    yield "widen", "code_to_decoder"
    yield "pixels", "tubelet_decode.proj"
    for part, coder in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i in range(len(coder.blocks)):
            for ours, theirs in (("gate", "fc1"), ("up", "fc2"), ("down", "fc3")):
                yield f"{part}.blocks.{i}.mlp.{ours}", f"{part}.blocks.{i}.mlp.{theirs}"
        yield part, part


def sd_vae(model: SdVae) -> Pairs:
    """diffusers: ``encoder.down_blocks.0.resnets.1.conv2``, ``decoder.mid_block.attentions.0``."""
    yield "moments", "quant_conv"
    yield "latents", "post_quant_conv"
    yield from _half("encoder", model.encoder, "down_blocks", "downsamplers")
    yield from _half("decoder", model.decoder, "up_blocks", "upsamplers")


def _half(part: str, layers: nn.Sequential, blocks: str, steps: str) -> Pairs:
    """One half: levels of residual blocks, each but the last ended by a change of resolution."""
    found = list(layers)
    attention = next(i for i, m in enumerate(found) if isinstance(m, PixelAttention))
    level, at = 0, 0
    for i, m in enumerate(found):
        ours = f"{part}.{i}"
        if isinstance(m, PixelAttention):
            theirs = f"{part}.mid_block.attentions.0"
            for a, b in ATTENTION.items():
                yield f"{ours}.{a}", f"{theirs}.{b}"
        elif isinstance(m, ResidualBlock):
            if abs(i - attention) == 1:
                theirs = f"{part}.mid_block.resnets.{0 if i < attention else 1}"
            else:
                theirs = f"{part}.{blocks}.{level}.resnets.{at}"
                at += 1
            yield f"{ours}.skip", f"{theirs}.conv_shortcut"
            yield ours, theirs
        elif isinstance(m, (Halve, Double)):
            yield ours, f"{part}.{blocks}.{level}.{steps}.0"
            level, at = level + 1, 0
        elif i == 0:
            yield ours, f"{part}.conv_in"
        else:
            yield ours, f"{part}.conv_out" if i == len(found) - 1 else f"{part}.conv_norm_out"
