"""Features in two views, as they are and without their mean over space (ScaleKD, section 3.2).

Fan et al. 2024, arXiv:2411.06786: a cosine transform over the positions, its (0, 0) coefficient
set to zero, and back. The rest shows what the mean, which dominates features, drowns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def basis(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of ``n`` values: ``basis(n) @ x``, ``(n, n)``."""
    k = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi / n * (k + 0.5) * k[:, None]) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows.float()


def dct(x: Tensor) -> Tensor:
    """The 2-D transform over the last two axes."""
    return basis(x.shape[-2]).to(x) @ x @ basis(x.shape[-1]).to(x).T


def idct(x: Tensor) -> Tensor:
    """The inverse of `dct`."""
    return basis(x.shape[-2]).to(x).T @ x @ basis(x.shape[-1]).to(x)


def without_mean(x: Tensor) -> Tensor:
    """Maps ``(batch, channels, height, width)`` without their (0, 0) coefficient."""
    coefficients = dct(x).clone()
    coefficients[..., 0, 0] = 0
    return idct(coefficients)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two maps, each channel standardised over batch and space.

    It lies in 0 .. 4; maps that differ by a positive scale and an offset per channel are at 0.
    """
    return (_standard(a) - _standard(b)).square().mean()


def _standard(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x - mean).square().mean((0, 2, 3), keepdim=True).add(1e-6).sqrt()
