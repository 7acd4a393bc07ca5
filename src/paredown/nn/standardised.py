"""Weight standardisation and batch-channel norm, for tiny batches (arXiv:1903.10520).

Qiao et al. 2019, sections 3 (weights) and 4 (batch-channel normalisation, micro-batch form in 4.2).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.conv import conv_like


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have zero mean and unit variance at every forward pass.

    ``w = (v - mean) / sqrt(var + eps)`` per output channel over its inputs and taps, ``var`` with
    n - 1; gradients flow through both. No parameters are added. Raises ``InputError`` for filters
    of one weight, which have no variance. Deviation: the released code adds its 1e-5 to the
    deviation, not under the root.
    """

    def __init__(self, *args: Any, eps: float = 1e-5, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.weight[0].numel() < 2:
            raise InputError("a filter of one weight cannot be standardised: use a plain Conv2d")
        self.eps = eps

    def standardised(self) -> Tensor:
        """The filters as used, in the weight's shape."""
        flat = self.weight.flatten(1)
        var, mean = torch.var_mean(flat, dim=1, keepdim=True)
        return ((flat - mean) * torch.rsqrt(var + self.eps)).reshape(self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``, with the standardised filters."""
        return self._conv_forward(input, self.standardised(), self.bias)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """A plain convolution with these filters, for inference."""
        weight = self.standardised()
        out = conv_like(self)
        out.weight.copy_(weight)
        if self.bias is not None and out.bias is not None:
            out.bias.copy_(self.bias)
        return out.train(self.training)


def standardise(model: nn.Module) -> nn.Module:
    """A copy of a model in which every ``nn.Conv2d`` standardises its filters.

    Filters of one weight are left as they are.
    """
    out = copy.deepcopy(model)
    for parent in list(out.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.weight[0].numel() > 1:
                setattr(parent, name, _standardised(child))
    return out


def _standardised(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, its filters standardised from now on."""
    new = conv_like(conv, kind=StandardisedConv2d)
    new.weight, new.bias = conv.weight, conv.bias
    return new


class EstimatedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by running estimates in training too, for batches of one or two (section 4.2).

    Each training step first moves the estimates, ``mean += speed * (batch mean - mean)`` and
    ``var += speed * (batch mean of (x - old mean)^2 - var)``, then normalises with them as
    constants. ``speed`` is a buffer to be set from outside (its schedule is not published).
    """

    speed: Tensor

    def __init__(self, channels: int, *, speed: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)
        self.register_buffer("speed", torch.tensor(speed))

    def forward(self, input: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        if self.training:
            self._move(input.detach(), mean, var)
            # Copies: autograd keeps them, and a second call moves the buffers in place.
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _move(self, x: Tensor, mean: Tensor, var: Tensor) -> None:
        square = (x - mean.reshape(1, -1, 1, 1)).square().mean((0, 2, 3))
        speed = self.speed.to(mean.dtype)
        mean.lerp_(x.mean((0, 2, 3)), speed)
        var.lerp_(square, speed)


class BatchChannelNorm2d(nn.Module):
    """Batch norm with its affine, then group norm with an affine per group (equation 11).

    ``groups`` None: 32, or the channels where they are fewer. ``estimated``: the micro-batch form.
    The batch part folds into the layer before it at inference, the group part does not. Raises
    ``InputError`` where the groups do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        groups: int | None = None,
        *,
        estimated: bool = True,
        speed: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.groups = min(32, channels) if groups is None else groups
        if channels % self.groups:
            raise InputError(f"{self.groups} groups do not divide {channels} channels")
        self.batch = (
            EstimatedBatchNorm2d(channels, speed=speed, eps=eps)
            if estimated
            else nn.BatchNorm2d(channels, eps=eps)
        )
        self.weight = nn.Parameter(torch.ones(self.groups))
        self.bias = nn.Parameter(torch.zeros(self.groups))
        self.per_group, self.eps = channels // self.groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        weight = self.weight.repeat_interleave(self.per_group)
        bias = self.bias.repeat_interleave(self.per_group)
        return F.group_norm(self.batch(x), self.groups, weight, bias, self.eps)
