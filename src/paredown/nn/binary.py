"""A convolution of +1 and -1 ("XNOR-Net", Rastegari et al. 2016, arXiv:1603.05279), and the term of
training that brings its channels together (Vo et al. 2023, "MST-compression", arXiv:2308.13735).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError


def sign(x: Tensor) -> Tensor:
    """+1 or -1 (zero counts as +1); the gradient passes where ``|x| <= 1``, as if it were x."""
    hard = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    soft = x.clamp(-1, 1)
    return soft + (hard - soft).detach()


class BinaryConv2d(nn.Module):
    """``(n, c, h, w) -> (n, out, h', w')``: signs of inputs times signs of weights, a scale each.

    Padding counts as +1, since a binary input has no zero. ``scale`` is the mean of a channel's
    ``|weight|``; the integers before it are what `integers` gives. ``centre`` is a fixed vector of
    signs, `spread` the channels' distances to it. Raises ``InputError`` for a bad geometry.
    """

    centre: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, kernel, stride) < 1:
            raise InputError("a binary convolution has positive sizes")
        self.kernel, self.stride = kernel, stride
        self.padding = kernel // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-1, 1))
        centre = torch.where(torch.rand(inputs, kernel, kernel) < 0.5, -1.0, 1.0)
        self.register_buffer("centre", centre)

    def integers(self, x: Tensor) -> Tensor:
        """The sums of +-1 products, exact in float32 up to 2**24 inputs."""
        padded = F.pad(sign(x), [self.padding] * 4, value=1.0)
        return F.conv2d(padded, sign(self.weight), stride=self.stride)

    def columns(self, x: Tensor) -> Tensor:
        """What each output position meets: ``(positions, inputs * kernel * kernel)`` of +-1."""
        padded = F.pad(sign(x), [self.padding] * 4, value=1.0)
        return F.unfold(padded, self.kernel, stride=self.stride).transpose(1, 2).flatten(0, 1)

    def spread(self) -> Tensor:
        """Distances of all channels to the centre, in inputs that differ (the paper's term)."""
        return ((1 - sign(self.weight) * self.centre) / 2).sum()

    def forward(self, x: Tensor) -> Tensor:
        """The scaled convolution."""
        scale = self.weight.abs().mean((1, 2, 3))[:, None, None]
        return self.integers(x) * scale

    def extra_repr(self) -> str:
        """Shape and geometry."""
        out, inputs = self.weight.shape[:2]
        return f"{inputs}, {out}, kernel={self.kernel}, stride={self.stride}"
