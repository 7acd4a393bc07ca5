"""Ranges of activations coded in a few bits: for a tensor, and for its channels.

RepQ-ViT (Li et al. 2023, arXiv:2212.08254, section 3.2) takes each range at the percentile of least
squared error, a range for each channel, and folds these into one for the layer; RepQuant
(arXiv:2402.05628) then trains both ends of every channel's range. Ranges here need not hold 0, so
zero points may lie outside of the codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.runtime.quantized_attention import from_codes, to_codes
from paredown.techniques.quantize.observe import Histogram

KEPT = (1.0, 0.99999, 0.9999, 0.999, 0.99)
"""Shares of the values kept, of which the one of least squared error is taken."""
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Shares of such a range tried too: with few bits the best ends lie well inside."""


def tensor_range(seen: Histogram, bits: int, *, search: bool = True) -> tuple[float, int]:
    """Scale and zero point of one range; without ``search`` from the least to the largest value."""
    if not search:
        return _grid(seen.low, seen.high, bits)
    edges = torch.linspace(-seen.reach, seen.reach, len(seen.counts) + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    held = seen.counts > 0
    x, weight = middles[held], seen.counts[held]
    best, least = _grid(seen.low, seen.high, bits), float("inf")
    for kept in KEPT:
        low, high = seen.range(100.0 * kept)
        for share in SHRINK:
            scale, zero = _grid(low * share, high * share, bits)
            error = float((weight * (x - _coded(x, scale, zero, bits)).square()).sum())
            if error < least:
                best, least = (scale, zero), error
    return best


def weight_scale(seen: Histogram, bits: int, kind: str) -> float:
    """Scale of attention weights (in 0 .. 1) for a quantizer of `runtime.quantized_attention`."""
    edges = torch.linspace(-seen.reach, seen.reach, len(seen.counts) + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    held = (seen.counts > 0) & (middles > 0)
    x, weight = middles[held], seen.counts[held]
    steps = 2**bits - 1 if kind == "uniform" else 1
    best, least = max(seen.high, 1e-30) / steps, float("inf")
    for kept in KEPT:
        scale = torch.tensor(max(seen.range(100.0 * kept)[1], 1e-30) / steps, dtype=torch.float64)
        back = from_codes(to_codes(x, scale, bits, kind), scale, bits, kind)
        error = float((weight * (x - back).square()).sum())
        if error < least:
            best, least = float(scale), error
    return best


def _grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point over ``[low, high]``; a range without width holds its value exactly."""
    width = high - low
    if width < 1e-30:
        return (abs(low), (-1 if low > 0 else 2**bits)) if abs(low) > 1e-30 else (1.0, 0)
    scale = width / (2**bits - 1)
    return scale, max(-_FAR, min(_FAR, round(-low / scale)))


TRAINED = 512
"""Rows that ranges are trained on at most."""
_FAR = 2**20
"""Zero points stay within this: beyond it codes could not tell values apart in float32."""


def _coded(x: Tensor, scale: float, zero: int, bits: int) -> Tensor:
    return (torch.clamp(torch.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


@dataclass(frozen=True)
class Channels:
    """A range for each channel: float32 ``scale`` and whole ``zero``, ``(channels,)`` each."""

    scale: Tensor
    zero: Tensor
    bits: int

    def codes(self, x: Tensor) -> Tensor:
        """Codes ``0 .. 2**bits - 1`` of ``(rows, channels)``, as float whole numbers."""
        return torch.clamp(torch.round(x / self.scale) + self.zero, 0, 2**self.bits - 1)

    def coded(self, x: Tensor) -> Tensor:
        """What they stand for."""
        return (self.codes(x) - self.zero) * self.scale

    def layer(self) -> tuple[float, int]:
        """The one scale and zero point they fold into: their means, the zero point rounded."""
        return float(self.scale.mean()), round(float(self.zero.mean()))

    def fold(self) -> tuple[Tensor, Tensor]:
        """``r`` and ``b``: channel c of the norm becomes ``x / r - b`` and has the layer's range.

        ``r = s_c / s`` and ``b = (z - z_c) s`` (their equations 8 to 10 with whole zero points),
        float64.
        """
        scale, zero = self.layer()
        return self.scale.double() / scale, (zero - self.zero.double()) * scale


def channel_ranges(rows: Tensor, bits: int, *, shift: bool = True) -> Channels:
    """The range of least squared error of each column of ``(rows, channels)``.

    Without ``shift`` all channels have one zero point, in the middle: ranges are symmetric.
    """
    ordered = rows.float().sort(dim=0).values
    n = len(ordered)
    least = torch.full(rows.shape[1:], float("inf"))
    best: tuple[Tensor, Tensor] | None = None
    for kept in KEPT:
        cut = min(int((1 - kept) * n), (n - 1) // 2)
        ends = ordered[cut], ordered[n - 1 - cut]
        for share in SHRINK:
            low, high = ends[0] * share, ends[1] * share
            if not shift:
                high = torch.maximum(-low, high)
                low = -high
            scale, zero = _channel_grid(low, high, bits, shift=shift)
            error = (rows - Channels(scale, zero, bits).coded(rows)).square().sum(0)
            better = error < least
            least = torch.where(better, error, least)
            best = (
                (scale, zero)
                if best is None
                else (torch.where(better, scale, best[0]), torch.where(better, zero, best[1]))
            )
    assert best is not None
    return Channels(*best, bits)


def power_of_two_ranges(rows: Tensor, bits: int, most: int = 3) -> Channels:
    """One range whose scale is doubled up to ``most`` times for wide channels (FQ-ViT: Lin et al.
    2022, arXiv:2111.13824, section 3.1, the power-of-two factor).
    """
    low, high = float(rows.min()), float(rows.max())
    scale, zero = _grid(low, high, bits)
    base = torch.full((rows.shape[1],), scale / 2**most)
    least = torch.full((rows.shape[1],), float("inf"))
    best = base
    for k in range(most + 1):
        tried = Channels(base * 2**k, torch.full_like(base, zero), bits)
        error = (rows - tried.coded(rows)).square().sum(0)
        best = torch.where(error < least, tried.scale, best)
        least = torch.minimum(error, least)
    return Channels(best, torch.full_like(base, zero), bits)


def _channel_grid(low: Tensor, high: Tensor, bits: int, *, shift: bool) -> tuple[Tensor, Tensor]:
    width = high - low
    # A dead channel takes a step of its own size, so that no code of it is far off.
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1e-6)
    scale = torch.where(width > 1e-6 * size, width / (2**bits - 1), size)
    if not shift:
        return scale, torch.full_like(scale, 2.0 ** (bits - 1))
    return scale, torch.round(-low / scale).clamp(-_FAR, _FAR)


def trained_ranges(
    rows: Tensor, start: Channels, moment: Tensor, steps: int, *, shift: bool = True
) -> Channels:
    """Both ends of every channel's range trained for the linears behind, straight-through.

    ``moment`` is ``W^T W`` of these, ``(channels, channels)``: the loss is the squared error of
    their outputs. The best step counts, where it is better than ``start`` on rows not trained on.
    """
    low0 = -start.zero * start.scale
    high0 = low0 + (2**start.bits - 1) * start.scale
    halves = rows[::2], rows[1::2] if len(rows) > 1 else rows
    x, held = (half[:: -(-len(half) // TRAINED)] for half in halves)
    metric = moment / moment.diagonal().mean().clamp(min=1e-30)
    size = (high0 - low0) / 2
    # In steps of the range's own half width, so that one rate suits all channels.
    ends = torch.zeros(2, len(low0), requires_grad=True)
    optimizer = torch.optim.Adam([ends], lr=0.02)
    top = 2**start.bits - 1

    def now() -> tuple[Tensor, Tensor]:
        low, high = low0 + ends[0] * size, high0 + ends[1] * size
        if not shift:
            high = (high - low) / 2
            low = -high
        scale = ((high - low) / top).clamp(min=1e-8)
        return scale, low

    def loss_of(coded: Tensor, wanted: Tensor) -> Tensor:
        off = coded - wanted
        return ((off @ metric) * off).sum() / off.numel()

    least, best = float("inf"), ends.detach().clone()
    with torch.enable_grad():
        for _ in range(steps):
            scale, low = now()
            zero = (
                _through(-low / scale) if shift else torch.full_like(low, 2.0 ** (start.bits - 1))
            )
            codes = torch.clamp(_through(x / scale) + zero, 0, top)
            loss = loss_of((codes - zero) * scale, x)
            if float(loss.detach()) < least:
                least, best = float(loss.detach()), ends.detach().clone()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        ends.copy_(best)
        scale, low = now()
        zero = torch.round(-low / scale) if shift else torch.full_like(low, 2.0 ** (start.bits - 1))
        found = Channels(scale.detach(), zero.clamp(-_FAR, _FAR).detach(), start.bits)
        better = loss_of(found.coded(held), held) < loss_of(start.coded(held), held)
    return found if bool(better) else start


def _through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of no rounding."""
    return x + (torch.round(x) - x).detach()
