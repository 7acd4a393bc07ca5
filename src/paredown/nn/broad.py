"""Residual layers in parallel instead of in sequence (Bermeitinger et al. 2023, arXiv:2309.08414).

``prod (I + F_i) x`` expands into ``x + sum F_i x`` and terms of higher order (section 3). Dropping
those turns a deep stack into one broad layer with the same parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation
from paredown.nn.conv import conv_like


def relu() -> nn.Module:
    """A ReLU that leaves its input alone: branches share theirs."""
    return nn.ReLU()


class ResidualConv(nn.Module):
    """``x + act(conv(x))``, the layer of the paper's stacks."""

    def __init__(self, channels: int, kernel: int = 3, *, act: Activation = relu) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2), act()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return x + self.branch(x)


class ParallelResidual(nn.Module):
    """``x + sum F_i(x)`` over branches that keep the shape (equation 7)."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        if not branches:
            raise InputError("a parallel layer needs at least one branch")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        out = x
        for branch in self.branches:
            out = out + branch(x)
        return out

    def fuse(self) -> BroadConv:
        """One convolution instead of many; ``InputError`` for branches of another form."""
        return BroadConv(self.branches)


class BroadConv(nn.Module):
    """``x + sum act(conv_i(x))`` as one convolution of D times the channels, then a sum.

    ``branches`` are ``Sequential(conv, act)``, their convolutions alike and ungrouped.
    """

    def __init__(self, branches: Sequence[nn.Module] | nn.ModuleList) -> None:
        super().__init__()
        convs = [_conv_of(b) for b in branches]
        first = convs[0]
        like = {
            (c.weight.shape, c.padding, c.stride, c.dilation, c.bias is None, c.padding_mode)
            for c in convs
        }
        kinds = {repr(b[1]) for b in branches if isinstance(b, nn.Sequential)}
        if len(like) > 1 or len(kinds) > 1 or first.groups > 1:
            raise InputError("only branches of like, ungrouped convolutions can be merged")
        self.depth = len(convs)
        self.conv = conv_like(first, outputs=self.depth * first.out_channels)
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([c.weight for c in convs]))
            if self.conv.bias is not None:
                self.conv.bias.copy_(torch.cat([c.bias for c in convs if c.bias is not None]))
        chosen = branches[0]
        assert isinstance(chosen, nn.Sequential)
        self.act = chosen[1]

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        return x + self.act(self.conv(x)).unflatten(1, (self.depth, -1)).sum(1)


def _conv_of(branch: nn.Module) -> nn.Conv2d:
    if isinstance(branch, nn.Sequential) and len(branch) == 2:
        conv = branch[0]
        if isinstance(conv, nn.Conv2d):
            return conv
    raise InputError(f"a branch must be Sequential(Conv2d, activation), got {branch}")


def parallelise(layers: Sequence[ResidualConv], groups: int = 1) -> nn.Sequential:
    """The layers as ``groups`` parallel layers in sequence, sharing their weights.

    ``groups == len(layers)`` is the stack itself. Raises ``InputError`` where the groups do not
    divide the layers.
    """
    if groups < 1 or len(layers) % groups:
        raise InputError(f"{groups} groups do not divide {len(layers)} layers")
    each = len(layers) // groups
    return nn.Sequential(
        *(
            ParallelResidual([r.branch for r in layers[i * each : (i + 1) * each]])
            for i in range(groups)
        )
    )


@torch.no_grad()
def truncation_error(layers: Sequence[ResidualConv], x: Tensor) -> float:
    """What the parallel form drops, as a share of what it keeps, on this input.

    The norm of the stack's output minus the parallel one's, over that of ``sum F_i(x)``.
    """
    deep = x
    for layer in layers:
        deep = layer(deep)
    kept = sum((layer.branch(x) for layer in layers), torch.zeros_like(x))
    return float((deep - x - kept).norm() / kept.norm())
