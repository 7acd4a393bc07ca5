"""Layers and blocks, plain modules with ordinary constructors; `zoo` puts networks together."""

from paredown.nn.conv import (
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    DenseBlock,
    DenseLayer,
    OneShotAggregation,
)
from paredown.nn.convnext import ConvNeXtBlock, LayerNorm2d
from paredown.nn.inverted import InvertedResidual, SlicedInvertedResidual
from paredown.nn.transformer import EncoderBlock, Mlp, SelfAttention

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ConvNeXtBlock",
    "ConvNormAct",
    "DenseBlock",
    "DenseLayer",
    "EncoderBlock",
    "InvertedResidual",
    "LayerNorm2d",
    "Mlp",
    "OneShotAggregation",
    "SelfAttention",
    "SlicedInvertedResidual",
]
