"""Linears with weights in 4-bit NormalFloat, and low-rank adapters on them (QLoRA).

Dettmers et al. 2023, arXiv:2305.14314, section 3, equations 4 to 6. A weight is cut into blocks
along its rows, one after another; a block has a scale, its largest absolute value, and each value
is one of 16 levels times the scale. With packed scales (double quantization) these are themselves
8-bit integers around their mean, in blocks of 256: 4 + 8/64 + 32/(64 * 256) = 4.127 bits a value.

Deviations: the scales become linear int8, where the authors take an 8-bit float; values take the
nearest level of the scale as it is held, not as it was before it was packed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.runtime.forms import form
from paredown.runtime.quantized import PackedForm

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""NormalFloat's 16 levels in float32: quantiles of the normal distribution with an exact zero."""

SCALES = 256
"""Scales that share a second scale."""


@torch.library.custom_op("paredown::dequantize_nf4", mutates_args=())
def dequantize_nf4(
    q: Tensor, scale: Tensor, rows: int, columns: int, block: int, dtype: torch.dtype
) -> Tensor:
    """Packed NormalFloat codes to a matrix ``(rows, columns)``.

    ``q`` is flat uint8, the value of even index in the low nibble; ``scale`` (float32) has one
    entry for each ``block`` values in row order, the last block as long as what is left.
    """
    levels = torch.tensor(LEVELS, device=q.device)
    codes = torch.stack((q & 15, q >> 4), dim=-1).flatten()[: rows * columns]
    w = levels[codes.to(torch.int32)] * scale.repeat_interleave(block)[: rows * columns]
    return w.reshape(rows, columns).to(dtype)


@dequantize_nf4.register_fake
def _(q: Tensor, scale: Tensor, rows: int, columns: int, block: int, dtype: torch.dtype) -> Tensor:
    return q.new_empty((rows, columns), dtype=dtype)


def quantize_nf4(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """``(codes, scales)`` of a float matrix: flat packed uint8, one float32 scale per block.

    Each value takes the nearest level of its block's scale; 0 and the largest are exact.
    """
    scale = _blocks(weight, block).abs().amax(dim=1)
    return codes_nf4(weight, scale, block), scale


def _blocks(weight: Tensor, block: int) -> Tensor:
    w = weight.detach().to(torch.float32).reshape(-1)
    return F.pad(w, (0, -w.numel() % block)).reshape(-1, block)


def codes_nf4(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """Flat packed uint8: the nearest level of each block's ``scale``, 0 where that is not
    positive.
    """
    w, blocks = weight.detach().reshape(-1), _blocks(weight, block)
    safe = torch.where(scale > 0, scale, float("inf"))
    levels = torch.tensor(LEVELS, device=w.device)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / safe.unsqueeze(1), middles).to(torch.uint8).reshape(-1)
    codes = codes[: w.numel() + w.numel() % 2].contiguous()
    if codes.numel() % 2:
        codes = F.pad(codes, (0, 1))
    return codes[0::2] | (codes[1::2] << 4)


def quantize_scales(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales as ``(int8 codes, float32 steps, float32 mean (1,))``; `dequantize_scales` is back."""
    mean = scale.mean().reshape(1)
    off = F.pad(scale - mean, (0, -scale.numel() % SCALES)).reshape(-1, SCALES)
    largest = off.abs().amax(dim=1)
    step = torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))
    codes = torch.round(off / step.unsqueeze(1)).to(torch.int8).reshape(-1)[: scale.numel()]
    return codes.contiguous(), step, mean


def dequantize_scales(codes: Tensor, step: Tensor, mean: Tensor) -> Tensor:
    """Float32 scales from `quantize_scales`."""
    return codes.to(torch.float32) * step.repeat_interleave(SCALES)[: codes.numel()] + mean


@form
class NF4Linear(PackedForm):
    """Linear over 4-bit NormalFloat weights, ``(..., in_features) -> (..., out_features)``.

    With a ``rank`` it adds ``alpha / rank * up(down(x))``: float factors ``(rank, in_features)``
    and ``(out_features, rank)``, the only tensors that are trained; ``up`` starts at zero.
    """

    bits = 4
    scale: Tensor
    step: Tensor
    mean: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: int = 64,
        packed_scales: bool = True,
        rank: int = 0,
        alpha: float = 16.0,
        bias: str | None = "float32",
        dtype: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if block < 1 or rank < 0:
            raise InputError(f"block must be positive and rank not negative, got {block}, {rank}")
        self.in_features, self.out_features = in_features, out_features
        self.block, self.packed_scales = block, packed_scales
        self.rank, self.alpha = rank, alpha
        values = in_features * out_features
        blocks = -(-values // block)
        self.weight = nn.Parameter(
            torch.empty((values + 1) // 2, dtype=torch.uint8, device=device), requires_grad=False
        )
        kind = torch.int8 if packed_scales else torch.float32
        self.register_buffer("scale", torch.empty(blocks, dtype=kind, device=device))
        if packed_scales:
            self.register_buffer("step", torch.empty(-(-blocks // SCALES), device=device))
            self.register_buffer("mean", torch.empty(1, device=device))
        real: torch.dtype = getattr(torch, dtype)
        held = None if bias is None else getattr(torch, bias)
        self.bias = (
            None
            if held is None
            else nn.Parameter(
                torch.empty(out_features, dtype=held, device=device), requires_grad=False
            )
        )
        self.down = self.up = None
        if rank:
            self.down = nn.Parameter(torch.empty((rank, in_features), dtype=real, device=device))
            self.up = nn.Parameter(torch.zeros((out_features, rank), dtype=real, device=device))

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        held = self.down.dtype if self.down is not None else torch.float32
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block": self.block,
            "packed_scales": self.packed_scales,
            "rank": self.rank,
            "alpha": self.alpha,
            "bias": None if self.bias is None else str(self.bias.dtype).removeprefix("torch."),
            "dtype": str(held).removeprefix("torch."),
        }

    def fill(self, weight: Tensor) -> None:
        """Take a float weight ``(out_features, in_features)`` over, quantized."""
        packed, scale = quantize_nf4(weight, self.block)
        self.scale = scale
        if self.packed_scales:
            self.scale, self.step, self.mean = quantize_scales(scale)
            held = dequantize_scales(self.scale, self.step, self.mean)
            packed = codes_nf4(weight, held, self.block)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantized weight ``(out_features, in_features)``, without the adapter."""
        scale = self.scale
        if self.packed_scales:
            scale = dequantize_scales(scale, self.step, self.mean)
        shape = (self.out_features, self.in_features)
        return dequantize_nf4(self.weight, scale, *shape, self.block, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Dequantize the weight to the input's dtype, multiply, add the adapter (equation 5)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        y = F.linear(input, self.matrix(input.dtype), bias)
        if self.down is not None and self.up is not None:
            low = F.linear(input, self.down.to(input.dtype))
            y = y + F.linear(low, self.up.to(input.dtype)) * (self.alpha / self.rank)
        return y

    def extra_repr(self) -> str:
        """Shape, block and adapter."""
        shape = f"{self.in_features}, {self.out_features}"
        return f"{shape}, block={self.block}, packed_scales={self.packed_scales}, rank={self.rank}"
