"""Convolution and frozen batch norm folded anew in each forward pass (arXiv:2305.11624).

Tune mode of You et al. 2024, "Efficient ConvBN Blocks for Transfer Learning and Beyond", section
3.3: the function and gradients of evaluation mode, the memory of a folded convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_CONVS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


class TunedConvNorm(nn.Module):
    """``norm(conv(x))`` that keeps ``x`` alone for the backward pass while the norm is frozen.

    ``conv`` is a (transposed) convolution with zero padding or a linear layer. With the norm in
    evaluation mode the weight is scaled by ``gamma / sqrt(var + eps)`` inside the forward pass, so
    the parameters stay what they were and their gradients are those of evaluation mode. With the
    norm in training mode it is the plain pair. Raises ``InputError`` for other layers.
    """

    def __init__(self, conv: nn.Module, norm: Norm) -> None:
        super().__init__()
        if type(conv) not in {*_CONVS, *_TRANSPOSED, nn.Linear}:
            raise InputError(f"only convolutions and linear layers can be tuned, got {conv}")
        if getattr(conv, "padding_mode", "zeros") != "zeros":
            raise InputError("only zero padding can be tuned")
        if norm.running_mean is None:
            raise InputError("a batch norm without running statistics is never frozen")
        self.conv: Any = conv
        self.norm = norm

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one layer that equals the pair; differentiable."""
        norm, conv = self.norm, self.conv
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        gain = torch.rsqrt(var + norm.eps)
        if norm.affine:
            gain = norm.weight * gain
        start = -mean if conv.bias is None else conv.bias - mean
        bias = start * gain
        if norm.affine:
            bias = bias + norm.bias
        weight: Tensor = conv.weight
        ones = [1] * (weight.ndim - 2)
        if isinstance(conv, Transposed):
            # (in, out / groups, ...): output channels repeat within each group.
            split = weight.unflatten(0, (conv.groups, -1))
            return (split * gain.reshape(conv.groups, 1, -1, *ones)).flatten(0, 1), bias
        return weight * gain.reshape(-1, 1, *ones), bias

    def forward(self, x: Tensor) -> Tensor:
        """As the pair."""
        if self.norm.training:
            return self.norm(self.conv(x))
        weight, bias = self.folded()
        c = self.conv
        kind = type(c)
        if kind is nn.Linear:
            return F.linear(x, weight, bias)
        if kind in _CONVS:
            return _CONVS[kind](x, weight, bias, c.stride, c.padding, c.dilation, c.groups)
        return _TRANSPOSED[kind](
            x, weight, bias, c.stride, c.padding, c.output_padding, c.groups, c.dilation
        )
