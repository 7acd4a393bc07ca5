"""A linear with integer codes of a few bits on both sides, static ranges, weights packed.

What RepQuant leaves behind (Li et al. 2024, arXiv:2402.05628, section 3): one scale and zero point
for the whole input, one of each per output of the weight, both asymmetric. The zero point of an
input may lie outside of its codes: ranges need not hold 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.runtime import ops
from paredown.runtime.forms import form
from paredown.runtime.quantized import PackedForm


@form
class LowBitLinear(PackedForm):
    """``(..., in_features) -> (..., out_features)`` over packed weights and coded inputs.

    ``bits`` (2 to 8) is what a weight's code takes: up to 4 bits two stand in a byte. Input codes
    are ``0 .. 2**activation_bits - 1``. Raises ``InputError`` for other widths.
    """

    weight: nn.Parameter
    scale: Tensor
    zero: Tensor
    in_scale: Tensor
    in_zero: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 4,
        activation_bits: int = 4,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not (2 <= bits <= 8 and 2 <= activation_bits <= 8):
            raise InputError(f"codes take 2 to 8 bits, got {bits} and {activation_bits}")
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.activation_bits = bits, activation_bits
        stored = (in_features + 1) // 2 if self.held == 4 else in_features
        self.weight = nn.Parameter(
            torch.empty((out_features, stored), dtype=torch.uint8, device=device),
            requires_grad=False,
        )
        self.register_buffer("scale", torch.empty((out_features, 1), device=device))
        zero = torch.empty((out_features, 1), dtype=torch.uint8, device=device)
        self.register_buffer("zero", zero)
        self.register_buffer("in_scale", torch.empty(1, device=device))
        self.register_buffer("in_zero", torch.empty(1, dtype=torch.int32, device=device))
        self.bias: nn.Parameter | None = None
        if bias is not None:
            empty = torch.empty(out_features, dtype=getattr(torch, bias), device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)

    @property
    def held(self) -> int:
        """Bits that a weight takes as it is stored: 4 or 8."""
        return 4 if self.bits <= 4 else 8

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        bias = self.bias
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "activation_bits": self.activation_bits,
            "bias": None if bias is None else str(bias.dtype).removeprefix("torch."),
        }

    def forward(self, input: Tensor) -> Tensor:
        """Reference semantics: code the input, dequantize both sides to its dtype, multiply."""
        top = 2**self.activation_bits - 1
        q = ops.quantize(input, self.in_scale, self.in_zero, 0, top, -1)
        x = ops.dequantize(q, self.in_scale, self.in_zero, -1, input.dtype)
        w = ops.dequantize_groups(
            self.weight, self.scale, self.zero, self.held, self.in_features, input.dtype
        )
        return F.linear(x, w, None if self.bias is None else self.bias.to(input.dtype))

    def extra_repr(self) -> str:
        """Shape and widths."""
        shape = f"{self.in_features}, {self.out_features}"
        return f"{shape}, bits={self.bits}, activation_bits={self.activation_bits}"
