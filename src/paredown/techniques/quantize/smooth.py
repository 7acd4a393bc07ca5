"""Channels after a norm made even, their spread moved into the weights that read them.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438, section 4): ``x W = (x / f) (f W)`` with
``f_j = max|x_j|^a / max|W_j|^(1 - a)``, ``1 / f`` folded into the norm before. Activations whose
channels spread widely then fit one range, and weights, which have a range for each output channel,
bear the spread.

Deviations: the strength ``a`` is chosen for each norm, of the paper's range and of none at all, by
the squared error expected of its linears; factors are what the norm's parameters hold after
rounding, so that a bfloat16 network computes the same too (a bias's remainder goes into the next).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.techniques.quantize.common import matrix
from paredown.techniques.quantize.observe import Peaks

STRENGTHS = (0.35, 0.5, 0.65, 0.8, 0.95)


def factors(seen: Peaks, weights: Sequence[Tensor], steps: int = 127) -> Tensor | None:
    """``(columns,)`` float64: what each column is divided by, None where that does not pay.

    ``weights`` are ``(out, columns)``, all reading the same columns; ``steps`` is the largest code
    of a weight. Columns that are always zero, or that no weight reads, keep 1.
    """
    assert seen.values is not None
    peaks, squares = seen.values.double(), seen.mean_square().double()
    both = torch.cat([w.double() for w in weights])
    widest = both.abs().amax(dim=0)
    live = (peaks > 0) & (widest > 0)
    best, least = None, expected_error(peaks, squares, both, steps)
    for strength in STRENGTHS:
        f = torch.ones_like(peaks)
        f[live] = peaks[live] ** strength / widest[live] ** (1 - strength)
        # One factor for all columns changes nothing: around 1 the norm's own size stays.
        f[live] /= f[live].log().mean().exp()
        error = expected_error(peaks / f, squares / f.square(), both * f, steps)
        if error < least:
            best, least = f, error
    return best


def expected_error(peaks: Tensor, squares: Tensor, weight: Tensor, steps: int) -> float:
    """Squared error of ``x W^T`` for 8-bit ``x`` in one range and ``W`` in a range a row.

    Rounding errors are taken as uniform and independent: a step squared over 12 each. ``peaks`` and
    ``squares`` are of the columns: largest absolute value and mean square.
    """
    step = peaks.max() / 127
    steps_of_rows = weight.abs().amax(dim=1) / steps
    of_inputs = step.square() * weight.square().sum()
    of_weights = steps_of_rows.square().sum() * squares.sum()
    return float((of_inputs + of_weights) / 12)


def folded(norm: Any, f: Tensor) -> dict[str, Tensor]:
    """The norm's new ``weight`` and ``bias`` (where it has one), divided by ``f``, in its dtype.

    A channel whose weight is zero, or would round to it, stays as it is.
    """
    old = norm.weight.detach()
    now = (old.double() / f).to(old.dtype)
    out = {"weight": torch.where(now == 0, old, now)}
    if getattr(norm, "bias", None) is not None:
        out["bias"] = (norm.bias.detach().double() / ratio(norm, out)).to(norm.bias.dtype)
    return out


def ratio(norm: Any, new: Mapping[str, Tensor]) -> Tensor:
    """What a norm's new weight divides by in truth, float64; 1 where it is zero."""
    old, now = norm.weight.detach().double(), new["weight"].double()
    return torch.where(now == 0, 1.0, old / torch.where(now == 0, 1.0, now))


def taken_up(layer: nn.Module, norm: Any, new: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A linear's ``(weight (out, in), offset (out,))`` in float64 behind a norm's new parameters.

    The offset belongs to its bias: what the norm's rounded bias leaves over.
    """
    f = ratio(norm, new)
    wide = matrix(layer).double() * f
    if "bias" not in new:
        return wide, torch.zeros(len(wide), dtype=wide.dtype)
    left = norm.bias.detach().double() / f - new["bias"].double()
    return wide, wide @ left
