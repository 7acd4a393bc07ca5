"""Group convolution of constant group size, and what it moves (E2GC, Jha et al., arXiv:2006.15100).

With a fixed number of groups the channels of a group grow with depth, so work and data reuse
drift apart from layer to layer; with a fixed group size both stay in step (section III).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from paredown.errors import InputError
from paredown.nn.conv import conv_like


def group_conv(
    inputs: int, outputs: int, group_size: int, kernel: int = 3, *, stride: int = 1
) -> nn.Conv2d:
    """A "same" convolution without bias whose groups read ``group_size`` channels each.

    ``group_size`` 1 is depthwise, ``inputs`` dense. Raises ``InputError`` where it does not divide
    the inputs or leaves groups that do not divide the outputs.
    """
    if inputs % group_size or outputs % (inputs // group_size):
        raise InputError(
            f"groups of {group_size} channels do not divide {inputs} inputs and {outputs} outputs"
        )
    return nn.Conv2d(
        inputs, outputs, kernel, stride, kernel // 2, groups=inputs // group_size, bias=False
    )


@dataclass(frozen=True)
class GroupCost:
    """What a group convolution costs by formula; ``h`` and ``w`` are the output's, batch 1."""

    inputs: int
    outputs: int
    group_size: int
    kernel: int
    h: int
    w: int
    stride: int = 1

    @property
    def params(self) -> int:
        """``k^2 G outputs``."""
        return self.kernel**2 * self.group_size * self.outputs

    @property
    def macs(self) -> int:
        """``h w k^2 G outputs``."""
        return self.h * self.w * self.params

    @property
    def elements(self) -> int:
        """Weights, inputs and outputs, each moved once."""
        pixels = self.h * self.w
        return self.params + pixels * (self.stride**2 * self.inputs + self.outputs)

    @property
    def reuse(self) -> float:
        """MACs per element moved (arithmetic intensity)."""
        return self.macs / self.elements

    def energy(self, joules_per_mac: float, joules_per_byte: float, *, itemsize: int = 4) -> float:
        """Joules of computing and moving everything once."""
        return self.macs * joules_per_mac + self.elements * itemsize * joules_per_byte

    def balance(self, joules_per_mac: float, joules_per_byte: float, *, itemsize: int = 4) -> float:
        """The group size at which computing takes as much energy as moving the data.

        Where no group size does (a weight costs more to move than its MACs), infinity. The
        authors' own closed form is not public; this is the balance their model is built on.
        """
        per_group = self.params / self.group_size
        weight = itemsize * joules_per_byte
        gain = per_group * (self.h * self.w * joules_per_mac - weight)
        maps = (self.elements - self.params) * weight
        return maps / gain if gain > 0 else float("inf")


def balanced_group_size(
    cost: GroupCost, joules_per_mac: float, joules_per_byte: float, *, itemsize: int = 4
) -> int:
    """The possible group size nearest, by ratio, to where computing and moving are in balance."""
    wanted = cost.balance(joules_per_mac, joules_per_byte, itemsize=itemsize)
    possible = [
        g
        for g in range(1, cost.inputs + 1)
        if cost.inputs % g == 0 and cost.outputs % (cost.inputs // g) == 0
    ]
    return min(possible, key=lambda g: max(g / wanted, wanted / g) if wanted < 1e30 else -g)


def regroup(model: nn.Module, group_size: int) -> nn.Module:
    """A copy whose grouped and depthwise convolutions all have groups of ``group_size`` channels.

    Their weights are new (He initialisation), so the network must be trained. Narrower layers
    become dense. Raises ``InputError`` where there is no grouped convolution or the size does not
    divide one's channels.
    """
    out = copy.deepcopy(model)
    found = 0
    for parent in list(out.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.groups > 1:
                setattr(parent, name, _regrouped(child, group_size))
                found += 1
    if not found:
        raise InputError("the model has no grouped convolution")
    return out


def _regrouped(conv: nn.Conv2d, group_size: int) -> nn.Conv2d:
    size = min(group_size, conv.in_channels)
    if conv.in_channels % size or conv.out_channels % (conv.in_channels // size):
        raise InputError(f"groups of {size} do not divide {conv.in_channels} channels")
    new = conv_like(conv, groups=conv.in_channels // size)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        with torch.no_grad():
            new.bias.zero_()
    return new
