"""One-shot pruning of one matrix ``(rows, columns)``: which entries stay, and what they become.

Magnitude; Wanda (Sun et al. 2024, arXiv:2306.11695, section 3: ``|w_ij| ||x_j||``, compared within
a row); SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1: optimal brain surgeon,
column by column, the columns to the right making up for what goes). Inputs come as their second
moment ``(columns, columns)``. Patterns: a share of the entries, or N kept in every M of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Columns that SparseGPT chooses together (the paper's lazy batch)."""
DAMPING = 0.01
"""Added to the moment's diagonal, as a share of its mean (the paper's)."""


def kept_of(pattern: str) -> tuple[int, int] | None:
    """``(n, m)`` of ``"n:m"``, None for ``"unstructured"``. Raises ``ValueError``."""
    if pattern == "unstructured":
        return None
    left, colon, right = pattern.partition(":")
    if not (colon and left.isdigit() and right.isdigit() and 0 < int(left) < int(right)):
        raise ValueError(f"pattern {pattern!r}: unstructured, or n:m with 0 < n < m")
    return int(left), int(right)


def chosen(score: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """Mask of the entries that stay: in each row the highest scores, exactly as many as asked."""
    rows, columns = score.shape
    if pattern is None:
        return _highest(score, columns - round(sparsity * columns))
    n, m = pattern
    return _highest(score.reshape(rows, columns // m, m), n).reshape(rows, columns)


def _highest(score: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter(-1, score.topk(count, dim=-1).indices, True)


def magnitude(weight: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """The largest entries of each row (or of each M), as they are."""
    return torch.where(chosen(weight.abs(), sparsity, pattern), weight, 0.0)


def wanda(
    weight: Tensor, moment: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """The entries of the largest ``|w| ||x||`` of each row (or of each M), as they are."""
    norm = moment.diagonal().clamp(min=0).sqrt().to(weight.dtype)
    return torch.where(chosen(weight.abs() * norm, sparsity, pattern), weight, 0.0)


def sparsegpt(
    weight: Tensor, moment: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """The entries that cost least to lose, the others changed to make up for it.

    Columns are gone through from left to right, ``BLOCK`` at a time: a share is met in each block
    over all rows together, N of M in each row. Columns that no input reaches go first, and are
    left as they were where the pattern keeps them.
    """
    w = weight.double().clone()
    h = moment.double().clone()
    dead = h.diagonal() <= 0
    h[dead, dead] = 1.0
    h += DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    # The factor's row i holds what the inverse over columns i.. holds, divided by its own root.
    root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    rows, columns = w.shape
    width = BLOCK if pattern is None else BLOCK // pattern[1] * pattern[1] or pattern[1]
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        gone = torch.zeros(rows, stop - start, dtype=torch.bool)
        if pattern is None:
            score = _cost(w, root, dead, start, stop).flatten()
            gone.view(-1)[score.argsort()[: round(sparsity * len(score))]] = True
        errors = torch.zeros(rows, stop - start, dtype=w.dtype)
        for i in range(start, stop):
            if pattern is not None and (i - start) % pattern[1] == 0:
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
