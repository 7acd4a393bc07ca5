"""Layers of signs: packed bits for weights and inputs, exact integer sums, a scale per channel
("XNOR-Net", Rastegari et al. 2016, arXiv:1603.05279; "MST-compression", Vo et al. 2023,
arXiv:2308.13735).

``y = gain * sum of sign(x - threshold) sign(w) + offset``. Signs are held eight to a byte and run
by popcount (`runtime.binary`), never unpacked; in files they lie along their spanning tree
(`sign_code`). Padding counts as +1, since a sign is never zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.runtime.binary import (
    as_words,
    binary_layer,
    binary_product,
    pack_signs,
    packed_bits,
)
from paredown.runtime.fixed_point import padded, windows
from paredown.runtime.forms import form
from paredown.runtime.quantized import PackedForm


class _Binary(PackedForm):
    """Shared: signs ``(channels, taps * ceil(inputs / 8))``, and the float vectors around them."""

    gain: Tensor
    offset: Tensor
    threshold: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        channels, inputs, *kernel = self.shape
        self.inputs, self.taps = inputs, torch.Size(kernel).numel()
        if min(self.shape) < 1:
            raise InputError(f"a binary layer has positive sizes, got {self.shape}")
        empty = torch.zeros(
            (channels, self.taps * -(-inputs // 8)), dtype=torch.uint8, device=device
        )
        self.signs = nn.Parameter(empty, requires_grad=False)
        self.register_buffer("gain", torch.empty(channels, device=device))
        self.register_buffer("offset", torch.empty(channels, device=device))
        self.register_buffer("threshold", torch.empty(inputs, device=device))

    def fill(self, weight: Tensor) -> None:
        """Take the signs of a weight of ``shape``; zero counts as +1."""
        by_taps = weight.detach().reshape(*self.shape[:2], self.taps).transpose(1, 2)
        self.signs = nn.Parameter(packed_bits(by_taps < 0).flatten(1), requires_grad=False)

    def weight_signs(self) -> Tensor:
        """+1 and -1 of ``shape``, float32."""
        at = torch.arange(8, dtype=torch.uint8, device=self.signs.device)
        bits = ((self.signs.unsqueeze(-1) >> at) & 1).reshape(self.shape[0], self.taps, -1)
        by_taps = 1.0 - 2.0 * bits[..., : self.inputs].float()
        return by_taps.transpose(1, 2).reshape(self.shape)

    def words(self) -> Tensor:
        """The signs as int64 ``(channels, taps * ceil(inputs / 64))``: each tap in whole words."""
        return as_words(self.signs.reshape(self.shape[0], self.taps, -1)).flatten(1)

    def places(self) -> Tensor:
        """At which bit of a packed row each input of a flattened weight stands, int64."""
        taps = torch.arange(self.taps) * (64 * -(-self.inputs // 64))
        return (torch.arange(self.inputs)[:, None] + taps).flatten()

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {"shape": list(self.shape)}

    def extra_repr(self) -> str:
        """Shape."""
        return f"{self.shape}"


@form
class BinaryLinear(_Binary):
    """``(..., in_features) -> (..., out_features)``; ``shape`` is (out_features, in_features)."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        super().__init__(shape, device)
        self.out_features, self.in_features = self.shape

    def integers(self, input: Tensor) -> Tensor:
        """The sums of products of signs, int32 ``(..., out_features)``."""
        packed = pack_signs(input, self.threshold)
        sums = binary_product(packed.reshape(-1, packed.shape[-1]), self.words(), self.inputs)
        return sums.reshape(*input.shape[:-1], -1)

    def forward(self, input: Tensor) -> Tensor:
        """Signs, sums, scale; in the input's dtype."""
        packed = pack_signs(input, self.threshold)
        rows = packed.reshape(-1, packed.shape[-1])
        y = binary_layer(rows, self.words(), self.inputs, self.gain, self.offset)
        return y.reshape(*input.shape[:-1], -1).to(input.dtype)


@form
class BinaryConv(_Binary):
    """A convolution in one to three dimensions without groups; ``shape`` is its weight's."""

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, device)
        self.stride, self.dilation = tuple(stride), tuple(dilation)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.out_channels, self.in_channels = self.shape[:2]
        self.kernel_size = self.shape[2:]

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            **super().config(),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
        }

    def patches(self, input: Tensor) -> Tensor:
        """``(n, inputs, *spatial)`` to packed rows ``(n, *places, taps * words)``."""
        packed = pack_signs(input.movedim(1, -1), self.threshold).movedim(-1, 1)
        whole = padded(packed, self.padding, self.kernel_size, self.dilation)
        seen = windows(whole, self.kernel_size, self.stride, self.dilation)
        return seen.movedim(1, -1).flatten(1 + len(self.kernel_size))

    def integers(self, input: Tensor) -> Tensor:
        """The sums of products of signs, int32 ``(n, channels, *places)``."""
        rows = self.patches(input)
        *places, width = rows.shape
        sums = binary_product(rows.reshape(-1, width), self.words(), self.taps * self.inputs)
        return sums.reshape(*places, -1).movedim(-1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Signs, sums, scale; in the input's dtype. A single image may come without a batch."""
        if input.ndim == 1 + len(self.kernel_size):
            return self.forward(input.unsqueeze(0)).squeeze(0)
        rows = self.patches(input)
        *places, width = rows.shape
        n = self.taps * self.inputs
        y = binary_layer(rows.reshape(-1, width), self.words(), n, self.gain, self.offset)
        y = y.reshape(*places, -1).movedim(-1, 1).to(input.dtype)
        # Channels come out last: as torch's convolutions, it stays so where they came in last.
        return y if _channels_last(input) else y.contiguous()


def _channels_last(x: Tensor) -> bool:
    return (
        x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    )
