"""Quantized layers as torch's CPU operators run them: int8 in, int8 weights packed, int32 sums.

What the forms of `runtime.quantized` mean (Krishnamoorthi 2018, arXiv:1806.08342, section 2), one
oneDNN call each: ``onednn::qlinear_pointwise`` and ``onednn::qconv_pointwise``, by AMX or VNNI. The
weight is held once, in oneDNN's own layout; `Packed.tensors` gives the form's tensors back to the
bit. Only a lowered copy holds these modules: techniques and artefacts know the forms alone.

Deviation from the forms: an input that is NaN becomes some integer, not the zero point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from paredown.runtime.backend import Asked
from paredown.runtime.quantized import DynamicLinear, QuantConv, QuantLinear

_FLOATS = (torch.float32, torch.bfloat16)


class Packed(nn.Module, ABC):
    """Stands in a lowered model for a form; ``asked`` is what the form asks of the numbers."""

    packed: Tensor
    _bias: Tensor | None

    def __init__(self, form: Any, packed: Tensor) -> None:
        super().__init__()
        # Neither parameter nor buffer: code that walks those cannot read oneDNN's layout.
        vars(self)["packed"] = packed
        self._kind = form.weight.dtype
        for name in ("scale", "zero", "in_scale", "in_zero"):
            if hasattr(form, name):
                self.register_buffer(name, getattr(form, name))
        self.bias: nn.Parameter | None = form.bias
        # The operators take a float32 bias; a bf16 one is a few bytes twice.
        vars(self)["_bias"] = None if form.bias is None else form.bias.detach().float()
        self._forward_hooks = form._forward_hooks.copy()
        self._forward_hooks_with_kwargs = form._forward_hooks_with_kwargs.copy()
        self._forward_hooks_always_called = form._forward_hooks_always_called.copy()
        self._forward_pre_hooks = form._forward_pre_hooks.copy()
        self._forward_pre_hooks_with_kwargs = form._forward_pre_hooks_with_kwargs.copy()
        self.eval()

    @property
    def weight(self) -> Tensor:
        """Empty, of the form's dtype: for code that asks a layer for it. Nothing can use it."""
        return torch.empty(0, dtype=self._kind)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weight as it is held."""
        return nbytes(self.packed)

    @abstractmethod
    def asked(self, dtype: str) -> Asked:
        """What the form asks where its input is ``dtype``."""

    @abstractmethod
    def unpacked(self) -> Tensor:
        """The form's weight, bit for bit."""

    def tensors(self) -> dict[str, Tensor]:
        """The form's tensors by name: what an artefact stores."""
        own = {
            **dict(self.named_buffers(recurse=False)),
            **dict(self.named_parameters(recurse=False)),
        }
        return {"weight": self.unpacked(), **own}


class PackedMatrix(Packed):
    """An int8 matrix ``(out_features, in_features)`` behind oneDNN's product, a scale a row."""

    def __init__(self, form: Any, weight: Tensor, scales: Tensor) -> None:
        super().__init__(form, pack_linear(weight))
        self.in_features, self.out_features = form.in_features, form.out_features
        vars(self)["_scales"] = scales.contiguous()
        vars(self)["_zeros"] = torch.zeros(form.out_features, dtype=torch.int32)

    def unpacked(self) -> Tensor:
        """``(out_features, in_features)``."""
        return self.packed.to_dense().t().contiguous()

    def product(
        self, q: Tensor, scale: Any, zero: Any, bias: Tensor | None, out: torch.dtype
    ) -> Tensor:
        """``scale * (q - zero) W^T + bias`` of a uint8 input, summed in integers."""
        return torch.ops.onednn.qlinear_pointwise(
            q,
            scale,
            zero,
            self.packed,
            self._scales,
            self._zeros,
            bias,
            1.0,
            0,
            out,
            "none",
            [],
            "",
        )


class PackedLinear(PackedMatrix):
    """Static or dynamic int8 linear, ``(..., in_features) -> (..., out_features)``."""

    def __init__(self, form: QuantLinear | DynamicLinear) -> None:
        super().__init__(form, form.weight.detach(), form.scale.expand(form.out_features))
        self.static = isinstance(form, QuantLinear)
        if isinstance(form, QuantLinear):
            self._grid = (form.in_scale.item(), int(form.in_zero.item()))

    def asked(self, dtype: str) -> Asked:
        """Int8 on both sides."""
        return Asked("int8", "static" if self.static else "dynamic", dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Quantize, multiply in integers, scale to the input's dtype."""
        scale, zero = self._grid if self.static else _own_range(input)
        q = quantized(input, scale, zero)
        out = input.dtype if input.dtype in _FLOATS else torch.float32
        return self.product(q, scale, zero, self._bias, out).to(input.dtype)


class PackedConv(Packed):
    """Static int8 convolution in one, two or three dimensions; the result lies channels last."""

    def __init__(self, form: QuantConv) -> None:
        scales = form.scale.expand(form.out_channels).contiguous()
        grid = (form.in_scale.item(), int(form.in_zero.item()))
        geometry = (list(form.stride), padding_of(form), list(form.dilation), form.groups)
        packed = torch.ops.onednn.qconv_prepack(
            form.weight.detach().contiguous(), scales, *grid, *geometry, None
        )
        super().__init__(form, packed)
        self._grid, self._geometry = grid, geometry
        self._shape = tuple(form.weight.shape)
        self.in_channels, self.out_channels = form.in_channels, form.out_channels
        self.kernel_size, self.stride, self.padding = form.kernel_size, form.stride, form.padding
        self.dilation, self.groups = form.dilation, form.groups
        vars(self)["_scales"] = scales
        vars(self)["_zeros"] = torch.zeros(form.out_channels, dtype=torch.int32)

    def asked(self, dtype: str) -> Asked:
        """Int8 on both sides."""
        return Asked("int8", "static", dtype)

    def unpacked(self) -> Tensor:
        """``(out_channels, in_channels / groups, *kernel_size)``."""
        return self.packed.to_dense().reshape(self._shape).contiguous()

    def forward(self, input: Tensor) -> Tensor:
        """Quantize, convolve in integers, scale to the input's dtype."""
        spatial = len(self.kernel_size)
        x = input if input.ndim == spatial + 2 else input.unsqueeze(0)
        q = quantized(x, *self._grid)
        if spatial > 1:
            last = torch.channels_last if spatial == 2 else torch.channels_last_3d
            q = q.contiguous(memory_format=last)
        out = input.dtype if input.dtype in _FLOATS else torch.float32
        y = torch.ops.onednn.qconv_pointwise(
            q,
            *self._grid,
            self.packed,
            self._scales,
            self._zeros,
            self._bias,
            *self._geometry,
            1.0,
            0,
            out,
            "none",
            [],
            "",
        )
        return (y if input.ndim == spatial + 2 else y.squeeze(0)).to(input.dtype)


def pack_linear(weight: Tensor) -> Tensor:
    """An int8 ``(rows, columns)`` weight in oneDNN's layout; its operator reads no strides."""
    return torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)


def quantized(x: Tensor, scale: Any, zero: Any) -> Tensor:
    """``clamp(round_half_even(x / scale) + zero, 0, 255)`` as uint8, `ops.quantize` in few passes.

    ``scale`` and ``zero`` are numbers or tensors of one element.
    """
    t = torch.div(x.float(), scale)
    return t.round_().add_(zero).clamp_(0, 255).to(torch.uint8)


def _own_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of this tensor's own range, as `ops.dynamic_quantize` takes them."""
    low, high = torch.aminmax(x)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=1e-12)
    return scale, torch.clamp(torch.round(-low / scale), 0, 255).to(torch.int32)


def padding_of(form: QuantConv) -> list[int]:
    """Zeros on each side per dimension; ``ValueError`` where the two sides differ."""
    if form.padding == "valid":
        return [0] * len(form.kernel_size)
    if isinstance(form.padding, str):
        total = [d * (k - 1) for d, k in zip(form.dilation, form.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise ValueError("'same' padding of an even kernel differs between its sides")
        return [t // 2 for t in total]
    return list(form.padding)


def nbytes(t: Tensor) -> int:
    """Bytes of a tensor's storage, oneDNN's layouts included."""
    if t.layout is not torch._mkldnn:  # type: ignore[attr-defined]
        return t.untyped_storage().nbytes()
    return int(torch.ops.mkldnn._nbytes(t))
