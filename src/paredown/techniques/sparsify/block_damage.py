"""What losing blocks of weights does to a network, and how many each layer may lose (LPViT, Xu et
al. 2024, arXiv:2407.02068).

A layer's curve tells the damage of losing its first k blocks in their order, k = 0 .. all. `counts`
chooses them: least sum of damage and power at a given share of multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.techniques.sparsify.pruners import Blocks

Curve = NDArray[np.float64]

RIDGE = 1e-7
"""Added to the diagonal of the rank-one Fisher matrix (the authors')."""
WINDOW = 0.05
"""Share of a curve over which it is averaged (the authors smooth theirs too)."""
HALVINGS = 200
"""Steps that narrow the slope down; far fewer are needed for float64."""


@dataclass(frozen=True)
class Layer:
    """One layer's choice: what losing its first k blocks does, and what the whole layer costs.

    ``damage[k]`` and ``gone[k]``, the share of its weights, are 0 at k = 0; work and power fall as
    the weights do.
    """

    damage: Curve
    gone: Curve
    macs: float
    power: float

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        return len(self.damage) - 1


def shares(weight: Tensor, blocks: Blocks, order: Tensor) -> Curve:
    """Share of a layer's weights in its first k blocks; blocks at an edge hold fewer."""
    sizes = blocks.sums(torch.ones(weight.shape, dtype=torch.float64)).flatten()[order]
    return np.concatenate([[0.0], sizes.cumsum(0).numpy() / weight.numel()])


def ascending(scores: Tensor) -> Tensor:
    """Blocks, flat, from the least score to the largest."""
    return scores.flatten().argsort(stable=True)


@dataclass(frozen=True)
class Products:
    """Sums over each block of weights times gradients, ``(items, blocks)`` and ``(blocks,)``.

    ``signed`` has those of each item; ``absolute`` and ``squared`` are means over items.
    """

    signed: Tensor
    absolute: Tensor
    squared: Tensor

    @staticmethod
    def of(weight: Tensor, gradient: Tensor, blocks: Blocks) -> Products:
        """Those of one gradient ``(rows, columns)``."""
        product = (weight * gradient).double()
        sums = [blocks.sums(t).flatten() for t in (product, product.abs(), product.square())]
        return Products(sums[0][None], sums[1], sums[2])

    @staticmethod
    def joined(items: Sequence[Products]) -> Products:
        """Those of several items."""
        return Products(
            torch.cat([p.signed for p in items]),
            torch.stack([p.absolute for p in items]).mean(0),
            torch.stack([p.squared for p in items]).mean(0),
        )


def output_curve(weight: Tensor, products: Products, blocks: Blocks, order: Tensor) -> Curve:
    """Estimated damage to the network's output: mean((dw g)^2) + (dw^T H dw) / 2.

    ``g`` is the gradient of the mean squared output and ``H = g g^T + RIDGE I`` (Fisher), the mean
    of that over items: ``((g . dw)^2 + RIDGE |dw|^2) / 2``, so blocks add up within the bracket.
    """

    def running(sums: Tensor) -> Tensor:
        return sums[..., order].cumsum(-1)

    squares = blocks.sums(weight.double().square()).flatten()
    second = running(products.signed).square().mean(0) + RIDGE * running(squares)
    total = running(products.squared) / weight.numel() + second / 2
    return np.concatenate([[0.0], total.numpy()])


def layer_curve(weight: Tensor, moment: Tensor, blocks: Blocks, order: Tensor) -> Curve:
    """Damage to the layer's own outputs, ``tr(dW H dW^T) / tr(W H W^T)`` with ``H = X^T X``."""
    w, h = weight.double(), moment.double()
    across = -(-w.shape[1] // blocks.columns)
    lost = torch.zeros_like(w)  # dW H so far
    found = np.zeros(len(order) + 1)
    for k, block in enumerate(order.tolist()):
        top, left = block // across * blocks.rows, block % across * blocks.columns
        rows, columns = slice(top, top + blocks.rows), slice(left, left + blocks.columns)
        own = w[rows, columns]
        step = own @ h[columns]
        found[k + 1] = found[k] + float((own * (2 * lost[rows, columns] + step[:, columns])).sum())
        lost[rows] += step
    return found / max(float(((w @ h) * w).sum()), 1e-300)


def smoothed(curve: Curve) -> Curve:
    """A moving average over `WINDOW` of the curve that then never falls; it starts at nothing."""
    half = int(len(curve) * WINDOW) // 2
    padded = np.pad(curve, half, mode="reflect", reflect_type="odd") if half else curve
    mean = np.convolve(padded, np.ones(2 * half + 1) / (2 * half + 1), mode="valid")
    return np.maximum.accumulate(np.maximum(mean - mean[0], 0.0))


def balance(layers: Sequence[Layer]) -> float:
    """The authors' weight of power against damage: the ratio of the mean largest slopes."""
    steepest = [float((np.diff(x.damage) / np.diff(x.gone)).max()) for x in layers]
    return float(np.mean(steepest)) / float(np.mean([x.power for x in layers]))


def counts(layers: Sequence[Layer], share: float, weight: float = 0.0) -> list[int]:
    """Blocks that each layer loses: least ``sum of damage + weight * power`` of all choices.

    At least ``share`` of all multiply-accumulates goes and less than one block more; every layer
    keeps at least min(0.05, (1 - share) / 2) of its blocks. What a MAC given up may cost is the
    same in all layers; a layer whose curve jumps there stops where the share is met.
    """
    floor = min(0.05, (1 - share) / 2)
    most = [x.blocks - max(1, ceil(x.blocks * floor)) for x in layers]
    wanted = min(share * sum(x.macs for x in layers), _lost(layers, most)) * (1 - 1e-12)
    extra = [weight * x.power / x.macs for x in layers]

    def chosen(slope: float) -> list[int]:
        """The best counts where a MAC given up may cost ``slope``; ties lose fewer blocks."""
        return [
            int(np.argmin((x.damage - (slope + e) * x.macs * x.gone)[: n + 1]))
            for x, n, e in zip(layers, most, extra, strict=True)
        ]

    # At -max(extra) nothing is worth losing; below the largest float64 everything is.
    low, high = -max(extra), 1.0
    while _lost(layers, chosen(high)) < wanted:
        high *= 16
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        enough = _lost(layers, chosen(middle)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return _filled(layers, chosen(low), chosen(high), wanted)


def _filled(layers: Sequence[Layer], few: list[int], many: list[int], wanted: float) -> list[int]:
    """From the counts just below the share towards those just above, until it is met."""
    found = list(few)
    for i, layer in enumerate(layers):
        missing = wanted - _lost(layers, found)
        if missing <= 0:
            break
        target = layer.gone[found[i]] + missing / layer.macs
        found[i] = min(many[i], int(np.searchsorted(layer.gone, target * (1 - 1e-12))))
    return found


def _lost(layers: Sequence[Layer], gone: Sequence[int]) -> float:
    return sum(x.macs * float(x.gone[n]) for x, n in zip(layers, gone, strict=True))
