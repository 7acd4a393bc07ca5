"""Where coded weights may stand: even points, numbers of a small float, or points that are learned.

Polino, Pascanu and Alistarh 2018, arXiv:1802.05668, sections 2 to 4: values are scaled bucket by
bucket to 0 .. 1 and take the nearest point there. For `nn.utils.parametrize` while training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def scaled(
    weight: Tensor, bucket: int, *, symmetric: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """``(values in 0 .. 1, span, low)`` by bucket: ``(buckets, bucket)``, ``(buckets, 1)`` twice.

    The last bucket is filled up with the last value; a bucket of equal values has span 1. With
    ``symmetric`` a bucket spans both signs of its largest magnitude, so that 0 lies at a half.
    """
    flat = weight.detach().reshape(-1).float()
    flat = torch.cat([flat, flat[-1:].expand(-flat.numel() % bucket)]).reshape(-1, bucket)
    if symmetric:
        low = -flat.abs().amax(1, keepdim=True)
        span = -2 * low
    else:
        low = flat.amin(1, keepdim=True)
        span = flat.amax(1, keepdim=True) - low
    span = torch.where(span > 0, span, torch.ones_like(span))
    return (flat - low) / span, span, low


def float_points(bits: int) -> Tensor:
    """Numbers of a float of so many bits with subnormals and no infinities, mapped to 0 .. 1.

    ``2**bits`` in rising order, 0 among them twice. Exponents take 1 bit of 2, 2 of 3 to 5, 3 of 6
    and 7, 4 of 8 (e2m1 and e3m2 are OCP's).
    """
    exponent = {2: 1, 6: 3, 7: 3, 8: 4}.get(bits, 2)
    steps = 2 ** (bits - 1 - exponent)
    positive = [
        (m / steps + (field > 0)) * 2.0 ** max(field, 1)
        for field in range(2**exponent)
        for m in range(steps)
    ]
    both = torch.tensor([-v for v in reversed(positive)] + positive)
    return both / (2 * positive[-1]) + 0.5


def nearest(unit: Tensor, ordered: Tensor) -> Tensor:
    """Indices of the nearest of rising points for flat values."""
    return torch.bucketize(unit.reshape(-1), (ordered[1:] + ordered[:-1]) / 2)


class Projected(nn.Module):
    """Weights on fixed points of their buckets, the gradient passed straight through."""

    def __init__(self, bits: int, bucket: int, grid: str = "even") -> None:
        super().__init__()
        self.bits, self.bucket, self.grid = bits, bucket, grid

    def tables(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat codes, the points, span and low of each bucket."""
        unit, span, low = scaled(weight, self.bucket, symmetric=self.grid == "float")
        if self.grid == "float":
            points = float_points(self.bits)
            codes = nearest(unit, points).to(torch.uint8)
        else:
            points = torch.linspace(0, 1, 2**self.bits)
            codes = torch.round(unit * (2**self.bits - 1)).to(torch.uint8)
        return codes.reshape(-1)[: weight.numel()], points, span[:, 0], low[:, 0]

    def forward(self, weight: Tensor) -> Tensor:
        """The projection, of the weight's shape."""
        codes, points, span, low = self.tables(weight)
        return weight + (values(codes, points, span, low, self.bucket, weight) - weight).detach()


class Points(nn.Module):
    """Weights that rest, each at the nearest of the points that are trained."""

    def __init__(self, bits: int, bucket: int, weight: Tensor) -> None:
        super().__init__()
        self.bits, self.bucket = bits, bucket
        unit = scaled(weight, bucket)[0].reshape(-1)[: weight.numel()].sort().values
        at = torch.linspace(0, unit.numel() - 1, 2**bits).round().long()
        self.points = nn.Parameter(unit[at].clone())

    def tables(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat codes, the points, span and low of each bucket."""
        unit, span, low = scaled(weight, self.bucket)
        ordered, places = self.points.detach().sort()
        codes = places[nearest(unit, ordered)][: weight.numel()].to(torch.uint8)
        return codes, self.points.detach().clone(), span[:, 0], low[:, 0]

    def forward(self, weight: Tensor) -> Tensor:
        """The points that weights stand at, of the weight's shape; gradients reach the points."""
        codes, _, span, low = self.tables(weight)
        return values(codes, self.points, span, low, self.bucket, weight)


def values(
    codes: Tensor, points: Tensor, span: Tensor, low: Tensor, bucket: int, like: Tensor
) -> Tensor:
    """``points[code] * span + low`` of flat codes, in the shape and dtype of ``like``."""
    n = codes.numel()
    flat = points[codes.to(torch.int64)] * span.repeat_interleave(bucket)[:n]
    return (flat + low.repeat_interleave(bucket)[:n]).reshape(like.shape).to(like.dtype)
