"""Norms and scales over channels-first maps: layer norm, global response norm, layer scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(batch, channels, h, w)``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each pixel's channels."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Each channel scaled by its share of the map's response (ConvNeXt V2, arXiv:2301.00808, 3).

    ``out = gamma * (x * share) + beta + x`` with ``share`` the channel's L2 norm over space, over
    the mean of these norms. ``channels_last`` says where the channels are: ``(batch, h, w,
    channels)`` or ``(batch, channels, h, w)``. gamma and beta start at zero: the identity. Without
    ``bias`` there is no beta (it folds into a linear map behind).
    """

    def __init__(
        self, channels: int, *, channels_last: bool = False, bias: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        shape = (1, 1, 1, channels) if channels_last else (1, channels, 1, 1)
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape)) if bias else None
        self.space, self.channel = ((1, 2), 3) if channels_last else ((2, 3), 1)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """A four-dimensional map to the same shape."""
        response = torch.linalg.vector_norm(x, dim=self.space, keepdim=True)
        share = response / (response.mean(self.channel, keepdim=True) + self.eps)
        out = self.gamma * (x * share) + x
        return out if self.beta is None else out + self.beta


class LayerScale(nn.Module):
    """A learned scale per channel, small at first (CaiT, Touvron et al. 2021, arXiv:2103.17239).

    ``dim`` is where the channels are: -1 for tokens and channels-last maps, 1 for channels-first.
    """

    def __init__(self, channels: int, scale: float = 1e-6, *, dim: int = -1) -> None:
        super().__init__()
        shape = (channels, 1, 1) if dim == 1 else (channels,)
        self.gamma = nn.Parameter(torch.full(shape, scale))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel; the same shape."""
        return x * self.gamma


def replace_norms(
    model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]
) -> nn.Module:
    """The model, changed in place: every module of exactly this ``kind`` is now ``make(it)``."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, make(child))
    return model
