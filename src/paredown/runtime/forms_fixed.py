"""Layers in fixed point: cast inputs, packed constants, exact sums (QFX, arXiv:2401.17544).

Dai et al. 2024: every tensor is a word with a binary point of its own. Weights of up to 4 bits, and
wider ones that have at most 16 values (few nonzero digits), are held as packed codes into a table,
others as int8. Sums are exact in float32 as long as they take at most 24 bits;
`fixed_point.run_in_integers` computes the same without floats and says where they do not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.errors import InputError
from paredown.runtime import ops
from paredown.runtime.fixed_point import (
    EXACT,
    Codes,
    Overflow,
    Round,
    Word,
    convolution,
    entered,
    hot_codes,
)
from paredown.runtime.forms import form
from paredown.runtime.forms_codebook import dequantize_codebook, pack
from paredown.runtime.quantized import PackedForm

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Numbers:
    """The words of one layer: its input's, its weight's, its bias's; ``hot`` 0 is any digits."""

    bits: int = 8
    signed: bool = True
    fraction: int = 0
    weight_bits: int = 8
    weight_fraction: int = 0
    hot: int = 0
    bias_fraction: int = 0
    """At most ``fraction + weight_fraction``: a bias stands on the sums' own grid."""
    rounding: Round = "round"
    overflow: Overflow = "saturate"

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 12 and 2 <= self.weight_bits <= 8):
            raise InputError(
                f"inputs take 2 to 12 bits and weights 2 to 8, got {self.bits} and "
                f"{self.weight_bits}"
            )
        if not 0 <= self.hot <= self.weight_bits:
            raise InputError(f"hot must lie in 0 .. {self.weight_bits}, got {self.hot}")

    @property
    def word(self) -> Word:
        """The input's word."""
        return Word(self.bits, self.signed, self.rounding, self.overflow)

    def levels(self) -> Tensor:
        """Codes that a weight may take, ascending int64."""
        return hot_codes(self.weight_bits, self.hot)

    @property
    def held(self) -> int:
        """Bits that a weight takes as it is stored: 2, 4 or 8."""
        count = len(self.levels())
        return next(b for b in (2, 4, 8) if count <= 2**b)


class _Fixed(PackedForm):
    """Shared: the weight of ``shape`` as codes, and the words."""

    def __init__(
        self,
        shape: tuple[int, ...],
        numbers: Numbers | dict[str, Any],
        bias: bool,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.numbers = numbers if isinstance(numbers, Numbers) else Numbers(**numbers)
        values, held = torch.Size(shape).numel(), self.numbers.held
        if held == 8:
            empty = torch.empty(self.shape, dtype=torch.int8, device=device)
        else:
            empty = torch.empty(-(-values * held // 8), dtype=torch.uint8, device=device)
            self.register_buffer("points", torch.empty(2**held, device=device))
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(shape[0], device=device), requires_grad=False)

    def fill(self, codes: Tensor) -> None:
        """Take weight codes of ``shape``, each one of the levels."""
        if self.numbers.held == 8:
            self.weight = nn.Parameter(codes.to(torch.int8).contiguous(), requires_grad=False)
            return
        levels = self.numbers.levels().to(codes.device)
        points = torch.zeros(2**self.numbers.held, device=codes.device)
        points[: len(levels)] = levels.float() * 2.0**-self.numbers.weight_fraction
        self.points = points
        packed = pack(torch.searchsorted(levels, codes.to(torch.int64)), self.numbers.held)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def matrix(self) -> Tensor:
        """The weight of ``shape`` in float32."""
        if self.numbers.held == 8:
            scale = torch.full((1,), 2.0**-self.numbers.weight_fraction, device=self.weight.device)
            zero = torch.zeros(1, dtype=torch.int32, device=self.weight.device)
            return ops.dequantize(self.weight, scale, zero, -1, torch.float32)
        values = torch.Size(self.shape).numel()
        one, none = torch.ones_like(self.points[:1]), torch.zeros_like(self.points[:1])
        return dequantize_codebook(
            self.weight, self.points, one, none, self.numbers.held, list(self.shape), values
        )

    def codes(self) -> Codes:
        """The weight as codes."""
        fraction = self.numbers.weight_fraction
        return Codes((self.matrix() * 2.0**fraction).to(torch.int64), fraction)

    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the structure from."""
        return {
            "shape": list(self.shape),
            "numbers": asdict(self.numbers),
            "bias": self.bias is not None,
        }

    def _in_integers(self, x: Codes, multiply: Any) -> Codes:
        y = x.product(self.codes(), multiply, self.numbers.hot)
        if self.bias is None:
            return y
        fraction = self.numbers.bias_fraction
        spatial = len(self.shape) - 2
        bias = (self.bias * 2.0**fraction).to(torch.int64).reshape(-1, *[1] * spatial)
        return y + Codes(bias, fraction).at(y.fraction, EXACT // 2)

    def extra_repr(self) -> str:
        """Shape and words."""
        n = self.numbers
        return f"{self.shape}, inputs {n.bits} bits, weights {n.weight_bits} bits, hot={n.hot}"


@form
class FixedLinear(_Fixed):
    """``(..., in_features) -> (..., out_features)``; ``shape`` is (out_features, in_features)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        numbers: Numbers | dict[str, Any],
        bias: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, numbers, bias, device)
        self.out_features, self.in_features = self.shape

    def forward(self, input: Any) -> Any:
        """Cast, multiply, sum; in the input's dtype."""
        x = entered(input, self.numbers.word, self.numbers.fraction)
        if isinstance(x, Codes):
            return self._in_integers(x, lambda a, b: a @ b.T)
        return F.linear(x, self.matrix(), self.bias).to(input.dtype)


@form
class FixedConv(_Fixed):
    """A zero-padded convolution in one to three dimensions; ``shape`` is its weight's.

    One of single taps with a group for each channel is what remains of a batch norm.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int,
        numbers: Numbers | dict[str, Any],
        bias: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, numbers, bias, device)
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

    def forward(self, input: Any) -> Any:
        """Cast, convolve, sum; in the input's dtype."""
        x = entered(input, self.numbers.word, self.numbers.fraction)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if isinstance(x, Codes):
            return self._in_integers(x, convolution(*geometry))
        conv = _CONV[len(self.kernel_size)]
        return conv(x, self.matrix(), self.bias, *geometry).to(input.dtype)
