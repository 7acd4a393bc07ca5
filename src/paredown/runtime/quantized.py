"""Forms with packed integer weights: the reference semantics of what backends run in integers.

Each form computes ``quantize -> dequantize -> float operator`` with the operators of `runtime.ops`,
so its output is the integer layer's up to float rounding (Krishnamoorthi 2018, arXiv:1806.08342,
section 2). Packed weights are parameters (a checkpoint's elements), scales and zero points buffers.
Activations may be float32 or bfloat16: weights are dequantized to the input's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.runtime import ops
from paredown.runtime.forms import form

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _packed(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None
) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def _bias(size: int, bias: str | None, device: torch.device | None) -> nn.Parameter | None:
    """An uninitialised bias of dtype ``bias``; None for no bias."""
    if bias is None:
        return None
    return nn.Parameter(
        torch.empty(size, dtype=getattr(torch, bias), device=device), requires_grad=False
    )


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


class PackedForm(nn.Module):
    """A form with packed weights that is defined elsewhere (see `INTEGER`)."""


class _Static(nn.Module):
    """Shared by the static forms: int8 weights, the input's range in ``in_scale`` / ``in_zero``."""

    weight: nn.Parameter
    scale: Tensor
    zero: Tensor
    in_scale: Tensor
    in_zero: Tensor

    def _tensors(
        self, shape: tuple[int, ...], per_channel: bool, device: torch.device | None
    ) -> None:
        self.weight = _packed(shape, torch.int8, device)
        channels = shape[0] if per_channel else 1
        self.register_buffer("scale", torch.empty(channels, device=device))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32, device=device))
        self.register_buffer("in_scale", torch.empty(1, device=device))
        self.register_buffer("in_zero", torch.empty(1, dtype=torch.int32, device=device))

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input as its uint8 range sees it, and the weight, both in the input's dtype."""
        q = ops.quantize(x, self.in_scale, self.in_zero, 0, 255, -1)
        seen = ops.dequantize(q, self.in_scale, self.in_zero, -1, x.dtype)
        return seen, ops.dequantize(self.weight, self.scale, self.zero, 0, x.dtype)


@form
class QuantLinear(_Static):
    """Static int8 linear: ``(..., in_features) -> (..., out_features)``; one input range."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: str | None = "float32",
        per_channel: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.per_channel = per_channel
        self._tensors((out_features, in_features), per_channel, device)
        self.bias = _bias(out_features, bias, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": _dtype_of(self.bias),
            "per_channel": self.per_channel,
        }

    def forward(self, input: Tensor) -> Tensor:
        """Reference semantics of the integer layer."""
        x, w = self._operands(input)
        return F.linear(x, w, _like(self.bias, input))

    def extra_repr(self) -> str:
        """Shape and granularity."""
        return f"{self.in_features}, {self.out_features}, per_channel={self.per_channel}"


@form
class QuantConv(_Static):
    """Static int8 convolution in one, two or three dimensions, grouped or not, zero-padded."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int = 1,
        bias: str | None = "float32",
        per_channel: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        shape = tuple(weight_shape)
        if len(shape) - 2 not in _CONV:
            raise InputError(f"QuantConv takes 1 to 3 spatial dimensions, got weight {shape}")
        self.stride, self.dilation = tuple(stride), tuple(dilation)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.groups, self.per_channel = groups, per_channel
        self.in_channels, self.out_channels = shape[1] * groups, shape[0]
        self.kernel_size = shape[2:]
        self._tensors(shape, per_channel, device)
        self.bias = _bias(shape[0], bias, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "weight_shape": list(self.weight.shape),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": _dtype_of(self.bias),
            "per_channel": self.per_channel,
        }

    def forward(self, input: Tensor) -> Tensor:
        """Reference semantics of the integer layer."""
        x, w = self._operands(input)
        conv: Any = _CONV[len(self.kernel_size)]
        bias = _like(self.bias, input)
        return conv(x, w, bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Shape and geometry."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, groups={self.groups}"
        )


@form
class DynamicLinear(nn.Module):
    """Linear with int8 weights whose input range is taken from each input at run time."""

    weight: nn.Parameter
    scale: Tensor
    zero: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _packed((out_features, in_features), torch.int8, device)
        self.register_buffer("scale", torch.empty(out_features, device=device))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32, device=device))
        self.bias = _bias(out_features, bias, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": _dtype_of(self.bias),
        }

    def forward(self, input: Tensor) -> Tensor:
        """Reference semantics: quantize by the input's own range, then as the static layer."""
        q, scale, zero = ops.dynamic_quantize(input)
        x = ops.dequantize(q, scale, zero, -1, input.dtype)
        w = ops.dequantize(self.weight, self.scale, self.zero, 0, input.dtype)
        return F.linear(x, w, _like(self.bias, input))

    def extra_repr(self) -> str:
        """Shape."""
        return f"{self.in_features}, {self.out_features}"


class _Grouped(nn.Module):
    """Shared by the weight-only forms: a packed ``(rows, columns)`` matrix with grouped scales."""

    weight: nn.Parameter
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int
    scales: str

    def _pack(
        self,
        rows: int,
        columns: int,
        bits: int,
        group_size: int,
        scales: str,
        device: torch.device | None,
    ) -> None:
        if bits not in (4, 8):
            raise InputError(f"weight-only takes 4 or 8 bits, got {bits}")
        if group_size and columns % group_size:
            raise InputError(f"group_size {group_size} does not divide {columns} columns")
        if scales not in ("float32", "float16"):
            raise InputError(f"scales are float32 or float16, got {scales!r}")
        self.bits, self.group_size, self.scales = bits, group_size, scales
        groups = columns // group_size if group_size else 1
        stored = columns if bits == 8 else (columns + 1) // 2
        self.weight = _packed((rows, stored), torch.uint8, device)
        kind = getattr(torch, scales)
        self.register_buffer("scale", torch.empty((rows, groups), dtype=kind, device=device))
        self.register_buffer("zero", torch.empty((rows, groups), dtype=torch.uint8, device=device))


@form
class WeightOnlyLinear(_Grouped):
    """Linear over packed 8- or 4-bit weights; ``group_size`` 0 is one scale per output channel.

    ``scales`` is the dtype they are held in; arithmetic with them is float32's.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 8,
        group_size: int = 0,
        bias: str | None = "float32",
        device: torch.device | None = None,
        scales: str = "float32",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._pack(out_features, in_features, bits, group_size, scales, device)
        self.bias = _bias(out_features, bias, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group_size": self.group_size,
            "bias": _dtype_of(self.bias),
            "scales": self.scales,
        }

    def forward(self, input: Tensor) -> Tensor:
        """Dequantize the weight to the input's dtype, then a float product."""
        w = ops.dequantize_groups(
            self.weight, self.scale, self.zero, self.bits, self.in_features, input.dtype
        )
        return F.linear(input, w, _like(self.bias, input))

    def extra_repr(self) -> str:
        """Shape, bits and grouping."""
        shape = f"{self.in_features}, {self.out_features}"
        return f"{shape}, bits={self.bits}, group_size={self.group_size}"


@form
class WeightOnlyConv(nn.Module):
    """Convolution with packed int8 weights, one scale per output channel, float arithmetic."""

    weight: nn.Parameter
    scale: Tensor
    zero: Tensor

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int = 1,
        bias: str | None = "float32",
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        shape = tuple(weight_shape)
        if len(shape) - 2 not in _CONV:
            raise InputError(f"WeightOnlyConv takes 1 to 3 spatial dimensions, got weight {shape}")
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.weight = _packed(shape, torch.int8, device)
        self.register_buffer("scale", torch.empty(shape[0], device=device))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32, device=device))
        self.bias = _bias(shape[0], bias, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "weight_shape": list(self.weight.shape),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": _dtype_of(self.bias),
        }

    def forward(self, input: Tensor) -> Tensor:
        """Dequantize the weight to the input's dtype, then a float convolution."""
        w = ops.dequantize(self.weight, self.scale, self.zero, 0, input.dtype)
        conv: Any = _CONV[self.weight.ndim - 2]
        bias = _like(self.bias, input)
        return conv(input, w, bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Shape and geometry."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}"


@form
class WeightOnlyEmbedding(_Grouped):
    """Embedding over packed 8- or 4-bit rows: only rows asked for are dequantized, to ``dtype``."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bits: int = 8,
        group_size: int = 0,
        dtype: str = "float32",
        device: torch.device | None = None,
        scales: str = "float32",
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype
        self._pack(num_embeddings, embedding_dim, bits, group_size, scales, device)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "bits": self.bits,
            "group_size": self.group_size,
            "dtype": self.dtype,
            "scales": self.scales,
        }

    def forward(self, input: Tensor) -> Tensor:
        """``(...)`` integer indices to ``(..., embedding_dim)``."""
        return ops.embedding_groups(
            input,
            self.weight,
            self.scale,
            self.zero,
            self.bits,
            self.embedding_dim,
            getattr(torch, self.dtype),
        )

    def extra_repr(self) -> str:
        """Shape, bits and grouping."""
        shape = f"{self.num_embeddings}, {self.embedding_dim}"
        return f"{shape}, bits={self.bits}, group_size={self.group_size}"


INTEGER: tuple[type[nn.Module], ...] = (
    _Static,
    DynamicLinear,
    _Grouped,
    WeightOnlyConv,
    PackedForm,
)
"""Every form with packed weights; its scales stay as they are whatever the model computes in."""


def _dtype_of(bias: Tensor | None) -> str | None:
    return None if bias is None else str(bias.dtype).removeprefix("torch.")
