"""Training layers of signs, with the term that shortens their spanning trees ("MST-compression",
Vo et al. 2023, arXiv:2308.13735; straight-through signs: "XNOR-Net", arXiv:1603.05279, section 3.1;
a learned threshold for each input channel: "ReActNet", Liu et al. 2020, arXiv:2003.03488).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.nn.binary import sign
from paredown.runtime.fixed_point import padded
from paredown.techniques.companion import Companion
from paredown.techniques.quantize.common import matrix
from paredown.workload import Workload

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Moments:
    """Mean and spread of each input channel of a layer, over everything seen."""

    def __init__(self, axis: int) -> None:
        self.axis, self.count = axis, 0
        self.sums = self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in a tensor whose ``axis`` holds the channels."""
        rows = x.detach().movedim(self.axis, -1).flatten(0, -2).double()
        self.count += len(rows)
        self.sums = self.sums + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def mean(self) -> Tensor:
        """Of each channel, float32."""
        return (self.sums / self.count).float()

    def spread(self) -> Tensor:
        """Standard deviation of each channel; 1 where a channel never changes."""
        variance = self.squares / self.count - (self.sums / self.count).square()
        return torch.where(variance > 0, variance.clamp(min=0).sqrt(), 1.0).float()


def input_moments(workload: Workload, sites: Iterable[str]) -> dict[str, Moments]:
    """Moments of the first input of the modules at ``sites`` over the calibration data."""
    found: dict[str, Moments] = {}
    handles: list[Any] = []
    for path in sites:
        module = workload.model.get_submodule(path)
        axis = -1 if matrix(module).ndim == 2 else 1 - matrix(module).ndim
        found[path] = Moments(axis)

        def look(_m: nn.Module, args: tuple[Any, ...], kwargs: Any, path: str = path) -> None:
            found[path].add(args[0] if args else kwargs["input"])

        handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.inference_mode():
            for call in workload.calibration_inputs():
                workload.once(call)
    finally:
        for handle in handles:
            handle.remove()
    return found


class Emulated(nn.Module):
    """A linear or convolution whose weight and input are signs while it is trained.

    It starts at the layer's least squares for inputs of their ``seen`` moments: thresholds at the
    means, whose share of the output goes into ``offset``. The centre is the majority of the
    channels' signs.
    """

    width: Tensor
    centre: Tensor

    def __init__(self, layer: Any, seen: Moments) -> None:
        super().__init__()
        self.layer = (layer,)  # not a submodule: its tensors are not trained
        weight = matrix(layer).float().clone()
        mean, spread = seen.mean(), seen.spread()
        flat = weight.flatten(1)
        taps = [1] * (weight.ndim - 2)
        lost = (weight * mean.view(-1, *taps)).flatten(1).sum(1)
        # The mean distance of normally distributed inputs from their mean.
        reach = math.sqrt(2 / math.pi) * float(spread.mean())
        self.weight = nn.Parameter(weight)
        self.threshold = nn.Parameter(mean)
        self.gain = nn.Parameter(flat.abs().mean(1) * reach)
        self.offset = nn.Parameter(lost if layer.bias is None else lost + layer.bias.detach())
        self.register_buffer("width", spread)
        self.register_buffer("centre", torch.where(sign(weight).sum(0) >= 0, 1.0, -1.0))

    def forward(self, input: Tensor) -> Tensor:
        """What the binary form gives, with gradients; in the input's dtype."""
        layer: Any = self.layer[0]
        taps = [1] * (self.weight.ndim - 2)
        apart = input.float() - self.threshold.view(-1, *taps)
        signs = sign(apart / self.width.view(-1, *taps))
        if self.weight.ndim == 2:
            sums = F.linear(signs, sign(self.weight))
        else:
            # Zeros around what is one less are ones around the signs.
            around = padded(signs - 1, layer.padding, layer.kernel_size, layer.dilation) + 1
            conv = _CONV[len(taps)]
            sums = conv(around, sign(self.weight), None, layer.stride, 0, layer.dilation)
        y = sums * self.gain.view(-1, *taps) + self.offset.view(-1, *taps)
        return y.to(input.dtype)

    def spread(self) -> Tensor:
        """Distances of all channels to the centre, in inputs that differ."""
        return ((1 - sign(self.weight) * self.centre) / 2).sum()


class TreeTerm(Companion):
    """``strength`` times the distances of all channels of all layers to their centres."""

    def __init__(self, layers: list[Emulated], strength: float) -> None:
        super().__init__()
        # A plain list registers nothing: the layers are the student's own.
        self.layers, self.strength = layers, strength

    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """The term."""
        return self.strength * torch.stack([layer.spread() for layer in self.layers]).sum()
