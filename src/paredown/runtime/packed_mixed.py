"""LLM.int8() as torch's CPU runs it: one int8 product by rows, one small float product.

What `forms_mixed.MixedInt8Linear` means (Dettmers et al. 2022, arXiv:2208.07339, equation 8). The
int8 operator takes one scale for the whole input, so each row is scaled before and after it, as
`packed_weights.PackedRows` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.runtime.backend import Asked
from paredown.runtime.forms_mixed import MixedInt8Linear
from paredown.runtime.packed import PackedMatrix
from paredown.runtime.packed_weights import digits


class PackedMixed(PackedMatrix):
    """``(..., in_features) -> (..., out_features)``; the float columns are a module beside."""

    columns: Tensor
    keep: Tensor

    def __init__(self, form: MixedInt8Linear) -> None:
        super().__init__(form, form.weight.detach(), form.scale)
        self.register_buffer("columns", form.columns)
        self.register_buffer("keep", form.keep)
        self.outliers = form.outliers

    def asked(self, dtype: str) -> Asked:
        """Int8 on both sides; the outlier columns ask for themselves."""
        return Asked("int8", "dynamic", dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Quantize by rows, multiply in integers, scale, add the float columns' product."""
        x = input.reshape(-1, self.in_features)
        inside = x.float() if self.outliers is None else x.float() * self.keep
        q, scale = digits(inside, 1)
        y = self.product(q, 1.0, 128, None, torch.float32).mul_(scale)
        if self.outliers is not None:
            y = y.add_(self.outliers(x.index_select(1, self.columns)))
        if self._bias is not None:
            y = y.add_(self._bias)
        return y.to(input.dtype).reshape(*input.shape[:-1], self.out_features)
