"""Activations as factories: a block makes its own, ``ConvNormAct(8, 8, act=hard_swish)``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Activation = Callable[[], nn.Module]


def relu() -> nn.Module:
    """An in-place ReLU."""
    return nn.ReLU(inplace=True)


def relu6() -> nn.Module:
    """An in-place ReLU clipped at 6."""
    return nn.ReLU6(inplace=True)


def gelu() -> nn.Module:
    """GELU (Hendrycks & Gimpel 2016), exact."""
    return nn.GELU()


def gelu_tanh() -> nn.Module:
    """GELU in its tanh approximation."""
    return nn.GELU(approximate="tanh")


def silu() -> nn.Module:
    """An in-place SiLU (swish): x times sigmoid(x)."""
    return nn.SiLU(inplace=True)


def hard_swish() -> nn.Module:
    """An in-place hard swish: x times relu6(x + 3) / 6 (MobileNetV3, arXiv:1905.02244, 5.2)."""
    return nn.Hardswish(inplace=True)


def sigmoid() -> nn.Module:
    """A sigmoid, for gates."""
    return nn.Sigmoid()


def hard_sigmoid() -> nn.Module:
    """An in-place hard sigmoid: relu6(x + 3) / 6, for gates."""
    return nn.Hardsigmoid(inplace=True)
