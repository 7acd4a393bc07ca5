"""Weight-only layers as torch's CPU operators run them: float inputs, int8 or int4 weights.

**int8, one scale per row** (`PackedRows`): torch's own ``_weight_int8pack_mm`` takes float32 inputs
by unvectorised loops. So the input is split into digits of 8 bits relative to its row's largest
value, and all digits go through one integer product with exact int32 sums: a float product by
integer units (the Ozaki scheme on int8: Ootomo, Ozaki and Yokota 2024, arXiv:2306.11975). Three
digits hold more than the 24 bits of float32's significand, two more than bfloat16's 8. Deviation:
their slices are of powers of two, ours of 254 steps.

**int4, groups of 32 to 256** (`PackedGroups`): ``_weight_int4pack_mm_for_cpu``, for bfloat16 inputs
alone. With float32 inputs its loops took 9x of a plain product for one row of 2048 x 2048 and 48x
for 16; unpacking the weight in every run costs about the same for any number of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.runtime.backend import Asked
from paredown.runtime.packed import Packed, PackedMatrix
from paredown.runtime.quantized import WeightOnlyLinear

_STEPS = 254.0
"""A digit's remainder lies in [-1/2, 1/2]; times this it fills a signed byte again."""

GROUPS = (32, 64, 128, 256)
"""Group sizes of torch's int4 operator."""


class PackedRows(PackedMatrix):
    """Linear over int8 weights with one scale and zero point per output."""

    _offset: Tensor | None

    def __init__(self, form: WeightOnlyLinear) -> None:
        # uint8 values around 128 become int8 values around 0 (their first bit turned, in one byte
        # each); the rest of a zero point is one multiple of the input's sum per output.
        shifted = form.weight.detach().bitwise_xor(128).view(torch.int8)
        scales = form.scale.reshape(-1).float()
        super().__init__(form, shifted, scales)
        off = (128.0 - form.zero.reshape(-1).float()) * scales
        vars(self)["_offset"] = off if bool(off.any()) else None

    def asked(self, dtype: str) -> Asked:
        """Int8 weights, products as precise as the input's dtype."""
        return Asked("int8", None, dtype)

    def unpacked(self) -> Tensor:
        """``(out_features, in_features)`` uint8."""
        return super().unpacked().view(torch.uint8).bitwise_xor(128)

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        x = input.reshape(-1, self.in_features).float()
        count = 2 if input.dtype == torch.bfloat16 else 3
        q, scale = digits(x, count)
        y = self.product(q, 1.0, 128, None, torch.float32)
        total = y[: x.shape[0]]
        for i in range(1, count):
            part = y[i * x.shape[0] : (i + 1) * x.shape[0]]
            total = total.add_(part, alpha=_STEPS**-i)
        total = total.mul_(scale)
        if self._offset is not None:
            total = total.addr_(x.sum(-1), self._offset)
        if self._bias is not None:
            total = total.add_(self._bias)
        return total.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


class PackedGroups(Packed):
    """Linear over int4 weights in groups of columns, bfloat16 inputs."""

    def __init__(self, form: WeightOnlyLinear) -> None:
        rows, columns = form.out_features, form.in_features
        q = torch.stack((form.weight.detach() & 15, form.weight.detach() >> 4), -1).flatten(-2)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        super().__init__(form, pack(q[:, :columns].to(torch.int32).contiguous(), 1))
        self.in_features, self.out_features, self.group = columns, rows, form.group_size
        # Torch's int4 means (q - 8) * scale + shift, of the input's dtype.
        scale = form.scale.float()
        shift = (8.0 - form.zero.float()) * scale
        tables = torch.stack((scale.t(), shift.t()), -1)
        vars(self)["_tables"] = tables.to(torch.bfloat16).contiguous()

    def asked(self, dtype: str) -> Asked:
        """Int4 weights, products in the input's dtype."""
        return Asked("int4", None, dtype)

    def unpacked(self) -> Tensor:
        """``(out_features, ceil(in_features / 2))`` uint8, as `ops.pack_int4` packs.

        The layout is torch's own business: the operator itself reads it, times the identity.
        """
        from paredown.runtime.ops import pack_int4

        groups = self.in_features // self.group
        ones = torch.ones(groups, self.out_features, 1)
        plain = torch.cat((ones, 8 * ones), -1).to(torch.bfloat16)
        eye = torch.eye(self.in_features, dtype=torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        chunks = [product(part, self.packed, self.group, plain) for part in eye.split(256)]
        return pack_int4(torch.cat(chunks).t().round().to(torch.uint8))

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        x = input.reshape(-1, self.in_features).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        y = product(x.contiguous(), self.packed, self.group, self._tables)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


def digits(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``(rows, columns)`` float32 as ``(count * rows, columns)`` uint8 digits, zero point 128.

    ``x = scale * sum_i (digit_i - 128) / 254**i`` up to half a unit of the last digit; ``scale`` is
    ``(rows, 1)``. Digit ``i`` stands in rows ``i * rows`` onwards. A row with a NaN or an infinity
    has it in ``scale``, and so everywhere.
    """
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127.0
    rest = x / scale
    found = [rest.round()]
    for _ in range(count - 1):
        rest = (rest - found[-1]) * _STEPS
        found.append(rest.round())
    whole = torch.cat(found) if count > 1 else found[0]
    return whole.add_(128.0).clamp_(1, 255).to(torch.uint8), scale
