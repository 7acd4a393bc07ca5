"""Numbers scaled tile by tile: FP8 with fine-grained scales, and LogFMT.

Insights into DeepSeek-V3 (Zhao et al. 2025, arXiv:2505.09343). Section 3.1: FP8 products take
activations by tiles of 1 x 128 and weights by blocks of 128 x 128, each with its own scale, and add
in float32. Section 3.2: LogFMT keeps a sign and the logarithm of each magnitude, spread evenly
between the smallest and the largest of its tile.

Deviations: scales are float32 and not counted among the bits; sums are plain float32 (Hopper's
tensor cores keep fewer bits, which the paper's kernels work around).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.analysis.floats import Float
from paredown.errors import InputError

ACTIVATION_TILE = (1, 128)
WEIGHT_BLOCK = (128, 128)
LOG_RANGE = math.log(2.0**32)
"""Natural logarithm of the widest tile: about the range of five exponent bits (section 3.2)."""


def scaled(x: Tensor, form: Float, tile: tuple[int, int] | None = None) -> Tensor:
    """A matrix (rows, columns) in ``form``'s numbers times one scale per tile (None: one for all).

    The largest magnitude of a tile becomes the format's largest number. Float32, of x's shape.
    """
    if x.dim() != 2:
        raise InputError(f"tiles are of a matrix, got {x.dim()} dimensions")
    rows, columns = tile or tuple(x.shape)
    blocks = _blocks(x.float(), rows, columns)
    top = blocks.abs().amax((1, 3), keepdim=True)
    scale = torch.where(top > 0, top / form.largest, 1.0)
    return _whole(form.round(blocks / scale) * scale, x.shape)


def product(x: Tensor, weight: Tensor, form: Float, *, fine: bool = True) -> Tensor:
    """``x @ weight.T`` with both sides in ``form``: scales per tile and block, or per tensor.

    ``x`` (tokens, inputs), ``weight`` (outputs, inputs); the sum is float32.
    """
    a = scaled(x, form, ACTIVATION_TILE if fine else None)
    return a @ scaled(weight, form, WEIGHT_BLOCK if fine else None).T


def logfmt(x: Tensor, bits: int = 8, tile: int = 128) -> Tensor:
    """``x`` (..., columns) through LogFMT with ``bits`` per value: a sign, and levels of log|x|.

    Level 0 is zero; levels 1 to ``2**(bits - 1) - 1`` run evenly in the logarithm from a tile's
    smallest magnitude, at most ``2**32`` below its largest, to the largest. The nearer level in
    linear space is taken, as the paper found necessary for unbiased activations; what lies below
    half the smallest level becomes zero. Float32.
    """
    if bits < 3:
        raise InputError(f"LogFMT needs 3 bits at least, got {bits}")
    flat = x.float().reshape(-1, x.shape[-1])
    blocks = _blocks(flat, 1, tile)
    size = blocks.abs()
    some = size > 0
    logs = torch.where(some, size, 1.0).log()
    high = torch.where(some, logs, -math.inf).amax((1, 3), keepdim=True)
    low = torch.where(some, logs, math.inf).amin((1, 3), keepdim=True)
    empty = torch.isinf(high)
    high = torch.where(empty, 0.0, high)
    low = torch.maximum(torch.where(empty, 0.0, low), high - LOG_RANGE)
    last = 2 ** (bits - 1) - 2
    step = ((high - low) / last).clamp(min=torch.finfo(torch.float32).tiny)
    under = ((logs - low) / step).floor().clamp(0, last)
    over = (under + 1).clamp(max=last)
    a, b = (low + step * under).exp(), (low + step * over).exp()
    near = torch.where((size - a).abs() <= (b - size).abs(), a, b)
    near = torch.where(some & (size >= low.exp() / 2), near, 0.0)
    return _whole(torch.copysign(near, blocks), flat.shape).reshape(x.shape)


def _blocks(x: Tensor, rows: int, columns: int) -> Tensor:
    """``(row blocks, rows, column blocks, columns)``, padded with zeros."""
    down, right = -x.shape[0] % rows, -x.shape[1] % columns
    full = F.pad(x, (0, right, 0, down))
    return full.reshape(full.shape[0] // rows, rows, full.shape[1] // columns, columns)


def _whole(blocks: Tensor, shape: torch.Size) -> Tensor:
    a, rows, b, columns = blocks.shape
    return blocks.reshape(a * rows, b * columns)[: shape[0], : shape[1]]
