"""Residual layers in parallel instead of in sequence (Bermeitinger et al. 2023, arXiv:2309.08414).

``prod (I + F_i) x`` expands into ``x + sum F_i x`` and terms of higher order (section 3). Dropping
those turns a deep stack into one broad layer with the same parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

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


class ParallelBlocks(nn.Module):
    """``x + sum F_i(x)`` of blocks that each are ``x + F_i(x)``, whatever is inside them.

    Written as ``sum block_i(x) - (D - 1) x``, so the blocks and their names stay as they are.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not blocks:
            raise InputError("a parallel layer needs at least one block")
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        out = x * (1 - len(self.blocks))
        for block in self.blocks:
            out = out + block(x)
        return out


def broaden(model: nn.Module, residual: Callable[[nn.Module], bool], groups: int = 1) -> nn.Module:
    """A copy of a model, its runs of like residual blocks made ``groups`` parallel layers each.

    ``residual`` says of a module whether it is ``x + F(x)``, as ``lambda m: isinstance(m,
    InvertedResidual) and m.thin_skip``. A run is a chain of them in a ``Sequential`` with
    parameters of the same names and shapes; one that the groups do not divide is left as it is, and
    so are single blocks. Raises ``InputError`` where nothing is left to be made broad.
    """
    if groups < 1:
        raise InputError(f"runs become at least one group, got {groups}")
    out, made = copy.deepcopy(model), 0
    for parent in list(out.modules()):
        # A class of its own may run its children otherwise.
        if type(parent) is not nn.Sequential:
            continue
        children, taken = list(parent), list[nn.Module]()
        for run in _runs(children, residual):
            each, left = divmod(len(run), groups)
            if left or each < 2:
                taken += run
                continue
            taken += [ParallelBlocks(run[i : i + each]) for i in range(0, len(run), each)]
            made += 1
        if len(taken) < len(children):
            del parent[:]
            parent.extend(taken)
    if not made:
        raise InputError("no run of like residual blocks to be made broad")
    return out


def _runs(
    children: Sequence[nn.Module], residual: Callable[[nn.Module], bool]
) -> list[list[nn.Module]]:
    """Children in order, like residual neighbours together and others alone."""

    def form(m: nn.Module) -> object:
        return type(m), [(n, p.shape) for n, p in m.named_parameters()]

    runs: list[list[nn.Module]] = []
    for child in children:
        joins = runs and residual(child) and residual(runs[-1][-1])
        if joins and form(child) == form(runs[-1][-1]):
            runs[-1].append(child)
        else:
            runs.append([child])
    return runs


@torch.no_grad()
def truncation_error(layers: Sequence[nn.Module], x: Tensor) -> float:
    """What the parallel form drops, as a share of what it keeps, on this input.

    The norm of the stack's output minus the parallel one's, over that of ``sum F_i(x)``; layers are
    any that are ``x + F_i(x)``. Measured on calibration data it says which runs to make broad.
    """
    deep = x
    for layer in layers:
        deep = layer(deep)
    kept = sum((layer(x) - x for layer in layers), torch.zeros_like(x))
    return float((deep - x - kept).norm() / kept.norm())
