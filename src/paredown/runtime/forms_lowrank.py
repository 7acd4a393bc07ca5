"""Low-rank forms: two thin layers in place of one, ``first`` then ``second``.

Both are ordinary layers, so a later rewrite reaches them under their own paths and every backend
already knows them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paredown.runtime.forms import form

_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


class _Pair(nn.Module):
    """Two layers in turn; ``weight`` is for code that asks a layer for its dtype or device."""

    first: nn.Module
    second: nn.Module
    _settings: dict[str, Any]

    @property
    def weight(self) -> Tensor:
        """An empty tensor of the weights' float type: it has no elements, so nothing can use it."""
        held = next(self.parameters())
        kind = held.dtype if held.is_floating_point() else getattr(torch, self._settings["dtype"])
        return torch.empty(0, dtype=kind, device=held.device)

    def config(self) -> dict[str, Any]:
        """What rebuilds the structure."""
        return dict(self._settings)

    def forward(self, input: Tensor) -> Tensor:
        """Through the narrow middle."""
        return self.second(self.first(input))


@form
class LowRankLinear(_Pair):
    """``(..., in_features) -> (..., rank) -> (..., out_features)``; the bias is the second's."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, dtype: str = "float32"
    ) -> None:
        super().__init__()
        kind: Any = getattr(torch, dtype)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self._settings = {
            "in_features": in_features,
            "out_features": out_features,
            "rank": rank,
            "bias": bias,
            "dtype": dtype,
        }
        self.first: nn.Module = nn.Linear(in_features, rank, bias=False, dtype=kind)
        self.second: nn.Module = nn.Linear(rank, out_features, bias=bias, dtype=kind)


@form
class LowRankConv(_Pair):
    """A convolution to ``rank`` channels with the original's kernel, then one of kernel 1.

    (Zhang et al. 2016, arXiv:1505.06798, section 3.1, linear case.)
    """

    def __init__(
        self,
        weight_shape: list[int],
        rank: int,
        stride: list[int],
        padding: list[int] | str,
        dilation: list[int],
        bias: bool,
        padding_mode: str = "zeros",
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self._settings = {
            "weight_shape": list(weight_shape),
            "rank": rank,
            "stride": list(stride),
            "padding": padding if isinstance(padding, str) else list(padding),
            "dilation": list(dilation),
            "bias": bias,
            "padding_mode": padding_mode,
            "dtype": dtype,
        }
        # What code around a convolution reads of it (to pad by hand, say).
        self.out_channels, self.in_channels = weight_shape[:2]
        self.kernel_size, self.groups, self.rank = tuple(weight_shape[2:]), 1, rank
        self.stride, self.dilation = tuple(stride), tuple(dilation)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        conv: Any = _CONV[len(weight_shape) - 2]
        kind: Any = getattr(torch, dtype)
        self.first: nn.Module = conv(
            weight_shape[1],
            rank,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=False,
            padding_mode=padding_mode,
            dtype=kind,
        )
        self.second: nn.Module = conv(rank, weight_shape[0], 1, bias=bias, dtype=kind)
