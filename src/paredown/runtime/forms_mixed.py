"""An int8 linear with some input columns in float (LLM.int8(): Dettmers et al. 2022).

arXiv:2208.07339, sections 3.1 and 3.2, equation 8: ``Y = X[:, O] W[O, :] + S * (Xi Wi)`` with one
scale per row of ``X`` and per column of ``W`` (vector-wise), ``O`` the outlier columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.runtime import ops
from paredown.runtime.forms import form
from paredown.runtime.quantized import DynamicLinear


class Outliers(nn.Module):
    """The float part: ``(rows, columns) -> (rows, out_features)``, no bias."""

    def __init__(
        self, columns: int, out_features: int, dtype: torch.dtype, device: torch.device | None
    ) -> None:
        super().__init__()
        weight = torch.empty((out_features, columns), dtype=dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """The product in the input's dtype."""
        return F.linear(input, self.weight.to(input.dtype))


@form
class MixedInt8Linear(DynamicLinear):
    """``(..., in_features) -> (..., out_features)``; ``outliers`` input columns stay in float.

    ``columns`` names them, ``keep`` is 0 there and 1 elsewhere; the int8 weight is 0 in them. A row
    of the input is scaled by its largest absolute value outside of them.
    """

    columns: Tensor
    keep: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        outliers: int,
        bias: str | None = "float32",
        dtype: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.register_buffer("columns", torch.zeros(outliers, dtype=torch.int64, device=device))
        self.register_buffer("keep", torch.ones(in_features, device=device))
        kind: torch.dtype = getattr(torch, dtype)
        self.outliers = Outliers(outliers, out_features, kind, device) if outliers else None

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        held = self.outliers.weight.dtype if self.outliers is not None else torch.float32
        return {
            **super().config(),
            "outliers": self.columns.numel(),
            "dtype": str(held).removeprefix("torch."),
        }

    def forward(self, input: Tensor) -> Tensor:
        """Reference semantics: the dequantized product plus that of the outlier columns."""
        x = input.reshape(-1, self.in_features)
        inside = x if self.outliers is None else x * self.keep.to(x.dtype)
        q, scale, zero = ops.dynamic_quantize_rows(inside)
        seen = ops.dequantize(q, scale, zero, 0, x.dtype)
        w = ops.dequantize(self.weight, self.scale, self.zero, 0, x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.linear(seen, w, bias)
        if self.outliers is not None:
            y = y + self.outliers(x.index_select(1, self.columns))
        return y.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape and number of float columns."""
        return f"{super().extra_repr()}, outliers={self.columns.numel()}"
