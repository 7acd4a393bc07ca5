"""Layers whose weights are codes into a small table of points, scaled bucket by bucket.

Polino, Pascanu and Alistarh 2018, arXiv:1802.05668, sections 2.1 and 2.2: a weight tensor is cut
into buckets of values in row order, each mapped to 0 .. 1 by its least value and its span; there,
values are one of ``2**bits`` points. Evenly spaced points are uniform quantization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.runtime.forms import form
from paredown.runtime.quantized import PackedForm

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@torch.library.custom_op("paredown::dequantize_codebook", mutates_args=())
def dequantize_codebook(
    q: Tensor, points: Tensor, span: Tensor, low: Tensor, bits: int, shape: list[int], bucket: int
) -> Tensor:
    """Packed codes to a float32 tensor of ``shape``: ``points[code] * span + low`` by bucket.

    ``q`` is a flat stream of codes in uint8, the first in the lowest bits; ``span`` and ``low``
    have one entry for each ``bucket`` values, the last one as long as what is left.
    """
    values = torch.Size(shape).numel()
    # Codes that straddle bytes are put together bit by bit.
    width = bits if 8 % bits == 0 else 1
    at = torch.arange(0, 8, width, device=q.device, dtype=torch.uint8)
    codes = ((q.unsqueeze(-1) >> at) & (2**width - 1)).flatten()
    if width != bits:
        each = torch.arange(bits, device=q.device, dtype=torch.uint8)
        codes = (codes[: values * bits].reshape(-1, bits) << each).sum(-1)
    codes = codes[:values]
    flat = points[codes.to(torch.int64)]
    flat = flat * span.repeat_interleave(bucket)[:values] + low.repeat_interleave(bucket)[:values]
    return flat.reshape(shape)


@dequantize_codebook.register_fake
def _(
    q: Tensor, points: Tensor, span: Tensor, low: Tensor, bits: int, shape: list[int], bucket: int
) -> Tensor:
    return points.new_empty(shape)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Flat codes below ``2**bits`` as a stream in uint8, the first in the lowest bits."""
    if 8 % bits:
        each = torch.arange(bits, device=codes.device, dtype=torch.uint8)
        single = (codes.reshape(-1, 1).to(torch.uint8) >> each) & 1
        return pack(single.reshape(-1), 1)
    per = 8 // bits
    padded = F.pad(codes.reshape(-1).to(torch.uint8), (0, -codes.numel() % per)).reshape(-1, per)
    out = padded[:, 0].clone()
    for i in range(1, per):
        out |= padded[:, i] << (bits * i)
    return out


class _Codebook(PackedForm):
    """Shared: the packed weight of ``shape`` and its tables."""

    points: Tensor
    span: Tensor
    low: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        bits: int,
        bucket: int,
        bias: str | None,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= 8 or bucket < 1:
            raise InputError(f"codes take 1 to 8 bits in buckets, got {bits} and {bucket}")
        self.shape, self.bits, self.bucket = tuple(shape), bits, bucket
        values = torch.Size(shape).numel()
        packed = torch.empty(-(-values * bits // 8), dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("points", torch.empty(2**bits, device=device))
        for name in ("span", "low"):
            self.register_buffer(name, torch.empty(-(-values // bucket), device=device))
        self.bias: nn.Parameter | None = None
        if bias is not None:
            empty = torch.empty(shape[0], dtype=getattr(torch, bias), device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        bias = self.bias
        return {
            "shape": list(self.shape),
            "bits": self.bits,
            "bucket": self.bucket,
            "bias": None if bias is None else str(bias.dtype).removeprefix("torch."),
        }

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight of ``shape``."""
        tables = (self.points, self.span, self.low)
        return dequantize_codebook(
            self.weight, *tables, self.bits, list(self.shape), self.bucket
        ).to(dtype)

    def _bias_like(self, x: Tensor) -> Tensor | None:
        return None if self.bias is None else self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Shape, bits and bucket."""
        return f"{self.shape}, bits={self.bits}, bucket={self.bucket}"


@form
class CodebookLinear(_Codebook):
    """``(..., in_features) -> (..., out_features)``; ``shape`` is (out_features, in_features)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        bits: int = 4,
        bucket: int = 256,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(tuple(shape), bits, bucket, bias, device)
        self.out_features, self.in_features = self.shape

    def forward(self, input: Tensor) -> Tensor:
        """Dequantize the weight to the input's dtype, then a float product."""
        return F.linear(input, self.matrix(input.dtype), self._bias_like(input))


@form
class CodebookConv(_Codebook):
    """A convolution in one to three dimensions, zero-padded; ``shape`` is its weight's."""

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int = 1,
        bits: int = 4,
        bucket: int = 256,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(tuple(shape), bits, bucket, bias, device)
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.out_channels, self.in_channels = self.shape[0], self.shape[1] * groups
        self.kernel_size = self.shape[2:]

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            **super().config(),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def forward(self, input: Tensor) -> Tensor:
        """Dequantize the weight to the input's dtype, then a float convolution."""
        conv = _CONV[len(self.kernel_size)]
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return conv(input, self.matrix(input.dtype), self._bias_like(input), *geometry)
