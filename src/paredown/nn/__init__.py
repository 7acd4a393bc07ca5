"""Layers and blocks, plain modules with ordinary constructors; `zoo` puts networks together."""

from paredown.nn.conv import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    DenseBlock,
    DenseLayer,
    OneShotAggregation,
)
from paredown.nn.convnext import ConvNeXtBlock
from paredown.nn.drop import DropPath
from paredown.nn.embed import PatchEmbed, RelativePositionBias
from paredown.nn.ghost import GhostModule
from paredown.nn.inverted import InvertedResidual, SlicedInvertedResidual
from paredown.nn.linear_attention import LinearAttention
from paredown.nn.mlp import ConvMlp, GatedMlp, Mlp
from paredown.nn.norm import GlobalResponseNorm, LayerNorm2d, LayerScale
from paredown.nn.partial import PartialConv
from paredown.nn.reparam import DilatedReparamConv, RepConv, reparameterise
from paredown.nn.squeeze import SqueezeExcite
from paredown.nn.transformer import CrossAttention, EncoderBlock, SelfAttention
from paredown.nn.wavelet import DualTree
from paredown.nn.window import WindowAttention

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvMlp",
    "ConvNeXtBlock",
    "ConvNormAct",
    "CrossAttention",
    "DenseBlock",
    "DenseLayer",
    "DilatedReparamConv",
    "DropPath",
    "DualTree",
    "EncoderBlock",
    "GatedMlp",
    "GhostModule",
    "GlobalResponseNorm",
    "InvertedResidual",
    "LayerNorm2d",
    "LayerScale",
    "LinearAttention",
    "Mlp",
    "OneShotAggregation",
    "PartialConv",
    "PatchEmbed",
    "RelativePositionBias",
    "RepConv",
    "SelfAttention",
    "SlicedInvertedResidual",
    "SqueezeExcite",
    "WindowAttention",
    "reparameterise",
]
