"""Layers and blocks, plain modules with ordinary constructors; `zoo` puts networks together."""

from paredown.nn.broad import BroadConv, ParallelResidual, ResidualConv
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
from paredown.nn.factored_conv import FactoredConv2d
from paredown.nn.ghost import GhostModule
from paredown.nn.group import group_conv, regroup
from paredown.nn.hourglass import HourglassMlp, ResidualMlpBlock
from paredown.nn.inverted import InvertedResidual, SlicedInvertedResidual
from paredown.nn.latent_attention import LatentAttention
from paredown.nn.linear_attention import LinearAttention, SimplifiedLinearAttention
from paredown.nn.mlp import ConvMlp, GatedMlp, Mlp
from paredown.nn.norm import GlobalResponseNorm, LayerNorm2d, LayerScale
from paredown.nn.partial import PartialConv
from paredown.nn.pooled import PooledBottleneck, PooledMixer
from paredown.nn.progressive_norm import ProgressiveNorm, RepBatchNorm
from paredown.nn.reparam import DilatedReparamConv, RepConv, reparameterise
from paredown.nn.squeeze import SqueezeExcite
from paredown.nn.standardised import (
    BatchChannelNorm2d,
    EstimatedBatchNorm2d,
    StandardisedConv2d,
    standardise,
)
from paredown.nn.transformer import CrossAttention, EncoderBlock, SelfAttention
from paredown.nn.tuned import TunedConvNorm
from paredown.nn.tvconv import TranslationVariantConv, vary
from paredown.nn.wavelet import DualTree
from paredown.nn.window import WindowAttention

__all__ = [
    "BasicBlock",
    "BatchChannelNorm2d",
    "Bottleneck",
    "BroadConv",
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
    "EstimatedBatchNorm2d",
    "FactoredConv2d",
    "GatedMlp",
    "GhostModule",
    "GlobalResponseNorm",
    "HourglassMlp",
    "InvertedResidual",
    "LatentAttention",
    "LayerNorm2d",
    "LayerScale",
    "LinearAttention",
    "Mlp",
    "OneShotAggregation",
    "ParallelResidual",
    "PartialConv",
    "PatchEmbed",
    "PooledBottleneck",
    "PooledMixer",
    "ProgressiveNorm",
    "RelativePositionBias",
    "RepBatchNorm",
    "RepConv",
    "ResidualConv",
    "ResidualMlpBlock",
    "SelfAttention",
    "SimplifiedLinearAttention",
    "SlicedInvertedResidual",
    "SqueezeExcite",
    "StandardisedConv2d",
    "TranslationVariantConv",
    "TunedConvNorm",
    "WindowAttention",
    "group_conv",
    "regroup",
    "reparameterise",
    "standardise",
    "vary",
]
