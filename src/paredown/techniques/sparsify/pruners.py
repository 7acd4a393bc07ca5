"""One-shot pruning of one matrix ``(rows, columns)``: which entries stay, and what they become.

Magnitude; Wanda (Sun et al. 2024, arXiv:2306.11695, section 3: ``|w_ij| ||x_j||``, compared within
a row); SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1: optimal brain surgeon,
column by column, the columns to the right making up for what goes). Inputs come as their second
moment ``(columns, columns)``. Patterns: a share of the entries, N kept in every M of a row,
or a share of blocks of neighbouring entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
"""Columns that SparseGPT chooses together (the paper's lazy batch)."""
DAMPING = 0.01
"""Added to the moment's diagonal, as a share of its mean (the paper's)."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of rows by columns that stay or go as one; those at an edge are cut."""

    rows: int
    columns: int

    def means(self, score: Tensor) -> Tensor:
        """The mean score of each block's entries, ``(down, across)``."""
        return self.sums(score) / self.sums(torch.ones_like(score))

    def spread(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """What is told of blocks, told of each entry."""
        tall = blocks.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return tall[:rows, :columns]

    def sums(self, entries: Tensor) -> Tensor:
        """The sum of each block's entries, ``(down, across)``."""
        rows, columns = entries.shape
        down, across = -(-rows // self.rows), -(-columns // self.columns)
        padded = entries.new_zeros(down * self.rows, across * self.columns)
        padded[:rows, :columns] = entries
        return padded.reshape(down, self.rows, across, self.columns).sum((1, 3))


Pattern = tuple[int, int] | Blocks | None
"""N kept of every M in a row, blocks, or None: anywhere."""


def kept_of(pattern: str) -> Pattern:
    """The pattern of ``"n:m"``, ``"RxC"`` (blocks), ``"unstructured"``. Raises ``ValueError``."""
    if pattern == "unstructured":
        return None
    down, cross, along = pattern.partition("x")
    if cross and down.isdigit() and along.isdigit() and int(down) > 0 and int(along) > 0:
        return Blocks(int(down), int(along))
    left, colon, right = pattern.partition(":")
    if not (colon and left.isdigit() and right.isdigit() and 0 < int(left) < int(right)):
        raise ValueError(f"pattern {pattern!r}: unstructured, n:m with 0 < n < m, or RxC")
    return int(left), int(right)


def chosen(score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Mask of the entries that stay: in each row the highest scores, exactly as many as asked.

    Blocks are compared over the whole matrix, by their mean score.
    """
    rows, columns = score.shape
    if isinstance(pattern, Blocks):
        means = pattern.means(score)
        count = means.numel() - round(sparsity * means.numel())
        return pattern.spread(_highest(means.flatten(), count).view_as(means), rows, columns)
    if pattern is None:
        return _highest(score, columns - round(sparsity * columns))
    n, m = pattern
    return _highest(score.reshape(rows, columns // m, m), n).reshape(rows, columns)


def _highest(score: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter(-1, score.topk(count, dim=-1).indices, True)


def magnitude(weight: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """The largest entries of each row (or of each M), as they are; blocks by their squares."""
    if isinstance(pattern, Blocks):
        return torch.where(chosen(weight.square(), sparsity, pattern), weight, 0.0)
    return torch.where(chosen(weight.abs(), sparsity, pattern), weight, 0.0)


def wanda(weight: Tensor, moment: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """The entries of the largest ``|w| ||x||`` of each row (or of each M), as they are; blocks by
    the squares of that.
    """
    norm = moment.diagonal().clamp(min=0).sqrt().to(weight.dtype)
    if isinstance(pattern, Blocks):
        return torch.where(chosen((weight * norm).square(), sparsity, pattern), weight, 0.0)
    return torch.where(chosen(weight.abs() * norm, sparsity, pattern), weight, 0.0)


def sparsegpt(weight: Tensor, moment: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """The entries that cost least to lose, the others changed to make up for it.

    Columns are gone through from left to right, ``BLOCK`` at a time: a share is met in each block
    over all rows together (of blocks of entries likewise), N of M in each row. Columns that no
    input reaches go first, and are left as they were where the pattern keeps them.
    """
    w = weight.double().clone()
    root, dead = inverse_root(moment)
    rows, columns = w.shape
    unit = pattern.columns if isinstance(pattern, Blocks) else pattern[1] if pattern else 1
    width = BLOCK // unit * unit or unit
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        gone = torch.zeros(rows, stop - start, dtype=torch.bool)
        if pattern is None:
            score = _cost(w, root, dead, start, stop).flatten()
            gone.view(-1)[score.argsort()[: round(sparsity * len(score))]] = True
        if isinstance(pattern, Blocks):
            gone = ~chosen(_cost(w, root, dead, start, stop), sparsity, pattern)
        errors = torch.zeros(rows, stop - start, dtype=w.dtype)
        for i in range(start, stop):
            if isinstance(pattern, tuple) and (i - start) % pattern[1] == 0:
                n, m = pattern
                score = _cost(w, root, dead, i, i + m)
                gone[:, i - start : i - start + m] = ~_highest(score, n)
            left = torch.where(gone[:, i - start], 0.0, w[:, i])
            error = (w[:, i] - left) / root[i, i]
            w[:, i:stop] -= error[:, None] * root[i, i:stop]
            w[:, i] = left
            errors[:, i - start] = error
        w[:, stop:] -= errors @ root[start:stop, stop:]
    return w.to(weight.dtype)


def inverse_root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """``(root, dead)``: the upper Cholesky factor of the damped moment's inverse, float64, and
    which columns no input reaches.

    The factor's row i holds what the inverse over columns i.. holds, divided by its own root.
    """
    h = moment.double().clone()
    dead = h.diagonal() <= 0
    h[dead, dead] = 1.0
    h += DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True), dead


def _cost(w: Tensor, root: Tensor, dead: Tensor, start: int, stop: int) -> Tensor:
    """What losing each entry of some columns costs; below nothing where no input reaches them."""
    cost = (w[:, start:stop] / root.diagonal()[start:stop]).square()
    return torch.where(dead[start:stop], -1 / (1 + w[:, start:stop].abs()), cost)


def error(weight: Tensor, pruned: Tensor, moment: Tensor) -> float:
    """Mean squared error of the outputs on the inputs behind ``moment``, relative to the outputs.

    ``tr(D C D') / tr(W C W')`` with ``D`` the change of the weights.
    """
    c, w = moment.double(), weight.double()
    d = w - pruned.double()
    whole = float(((w @ c) * w).sum())
    return float(((d @ c) * d).sum()) / whole if whole > 0 else 0.0
