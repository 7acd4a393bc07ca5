"""A linear with two of every four weights kept, in two bits each (AccLLM, arXiv:2505.03745).

Liang et al. 2025, section III: 2:4 sparsity and 2-bit weights on what is left. A kept weight is a
code of 2 bits on its group's even grid of four points and a place of 2 bits among its four columns:
2 bits for each weight of the dense matrix, and 32 for each group (least point and step, float16).
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


@torch.library.custom_op("paredown::dequantize_two_of_four", mutates_args=())
def dequantize_two_of_four(
    codes: Tensor, places: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype
) -> Tensor:
    """``(rows, columns)`` of which two of every four are ``low + code * step``, the others zero.

    ``codes`` and ``places`` are ``(rows, columns / 8)`` uint8, four kept weights to a byte, the
    first lowest; ``low`` and ``step`` are ``(rows, groups)`` float16.
    """
    at = torch.arange(0, 8, 2, device=codes.device, dtype=torch.uint8)
    kept = ((codes.unsqueeze(-1) >> at) & 3).flatten(1).float()
    where = ((places.unsqueeze(-1) >> at) & 3).flatten(1).to(torch.int64)
    rows, half = kept.shape
    grouped = kept.reshape(rows, low.shape[1], -1)
    values = (low.float().unsqueeze(-1) + grouped * step.float().unsqueeze(-1)).reshape(rows, -1, 2)
    dense = torch.zeros(rows, half // 2, 4, device=codes.device)
    dense.scatter_(-1, where.reshape(rows, -1, 2), values)
    return dense.reshape(rows, 2 * half).to(dtype)


@dequantize_two_of_four.register_fake
def _(codes: Tensor, places: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.new_empty((codes.shape[0], 8 * codes.shape[1]), dtype=dtype)


def pack_pairs(codes: Tensor) -> Tensor:
    """``(rows, n)`` values 0 .. 3 four to a byte, the first lowest; ``n`` a multiple of 4."""
    four = codes.to(torch.uint8).reshape(codes.shape[0], -1, 4)
    return four[..., 0] | (four[..., 1] << 2) | (four[..., 2] << 4) | (four[..., 3] << 6)


@form
class TwoOfFourLinear(PackedForm):
    """``(..., in_features) -> (..., out_features)``; groups are of dense columns.

    ``rows_in_int8`` codes each row of the input in 8 bits of its own range first (the paper's A8).
    Raises ``InputError`` where 8 or ``group_size`` does not divide the columns.
    """

    low: Tensor
    step: Tensor
    places: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group_size: int = 64,
        rows_in_int8: bool = True,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if in_features % 8 or in_features % group_size or group_size % 4:
            raise InputError(
                f"8 and groups of {group_size} columns must divide the {in_features} columns"
            )
        self.in_features, self.out_features = in_features, out_features
        self.group_size, self.rows_in_int8 = group_size, rows_in_int8
        packed = torch.empty((out_features, in_features // 8), dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("places", torch.empty_like(packed))
        for name in ("low", "step"):
            shape = (out_features, in_features // group_size)
            self.register_buffer(name, torch.empty(shape, dtype=torch.float16, device=device))
        self.bias: nn.Parameter | None = None
        if bias is not None:
            empty = torch.empty(out_features, dtype=getattr(torch, bias), device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        bias = self.bias
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "group_size": self.group_size,
            "rows_in_int8": self.rows_in_int8,
            "bias": None if bias is None else str(bias.dtype).removeprefix("torch."),
        }

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The dense weight ``(out_features, in_features)``."""
        return dequantize_two_of_four(self.weight, self.places, self.low, self.step, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Code the input's rows, unpack the weight, a float product."""
        x = input
        if self.rows_in_int8:
            q, scale, zero = ops.dynamic_quantize_rows(input.reshape(-1, self.in_features))
            x = ops.dequantize(q, scale, zero, 0, input.dtype).reshape(input.shape)
        return F.linear(
            x, self.matrix(x.dtype), self.bias if self.bias is None else self.bias.to(x.dtype)
        )

    def extra_repr(self) -> str:
        """Shape and grouping."""
        return f"{self.in_features}, {self.out_features}, group_size={self.group_size}"
