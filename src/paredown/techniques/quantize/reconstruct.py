"""Weights in a few bits that reproduce a layer's outputs, column by column.

RepQuant (Li et al. 2024, arXiv:2402.05628) joins a reconstruction of quantized weights to its
ranges. Here it is OBQ's update in GPTQ's order (Frantar et al. 2022, arXiv:2208.11580; 2023,
arXiv:2210.17323, section 3): each column is rounded, and the columns to its right make up for the
error by second order. The inputs that count are the coded ones, and the weight is first refitted to
them, so that the errors of activations are made up for too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.techniques.quantize.weight_only import grouped

DAMPING = 0.01
"""Added to the second moment's diagonal, as a share of its mean (GPTQ's)."""
BLOCK = 128
"""Columns whose errors are passed on together (GPTQ's lazy batch)."""


def reconstructed(
    weight: Tensor, inputs: Tensor, coded: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(q, scale, zero)`` as `weight_only.grouped`'s, one group a row.

    ``inputs`` and ``coded`` are ``(rows, columns)``: what the layer reads in floats, and what it
    will read. Every second row is fitted to; rounding to nearest is kept where it reproduces
    ``inputs W^T`` better on the others.
    """
    w, x, z = weight.double(), inputs[::2].double(), coded[::2].double()
    n, columns = x.shape
    moment = z.T @ z / n
    dead = moment.diagonal() <= 0
    moment[dead, dead] = 1.0
    damping = DAMPING * float(moment.diagonal().mean())
    moment += damping * torch.eye(columns, dtype=moment.dtype)
    goal = w
    if n >= 2 * columns:
        cross = x.T @ z / n + damping * torch.eye(columns, dtype=moment.dtype)
        cross[dead, dead] += 1.0
        goal = torch.linalg.solve(moment, (w @ cross).T).T
    nearest = grouped(weight, bits, 0, clip=True)
    found = _by_column(goal, moment, bits)
    judged = coded[1::2].double() if len(coded) > 1 else z
    wanted = (inputs[1::2].double() if len(coded) > 1 else x) @ w.T
    errors = [_off(judged @ back(*each).double().T, wanted) for each in (nearest, found)]
    return found if errors[1] < errors[0] else nearest


def _off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).square().sum())


def back(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The float weight of codes with one scale and zero point a row."""
    return (q.float() - zero.float()) * scale


def _by_column(w: Tensor, moment: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    _, scale, zero = grouped(w.float(), bits, 0, clip=True)
    s, z = scale.double()[:, 0], zero.double()[:, 0]
    # The factor's row i holds what the inverse over columns i.. holds, divided by its own root.
    root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True)
    left = w.clone()
    q = torch.zeros_like(left)
    columns = w.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.zeros(len(w), stop - start, dtype=w.dtype)
        for i in range(start, stop):
            q[:, i] = torch.clamp(torch.round(left[:, i] / s) + z, 0, 2**bits - 1)
            error = (left[:, i] - (q[:, i] - z) * s) / root[i, i]
            left[:, i:stop] -= error[:, None] * root[i, i:stop]
            errors[:, i - start] = error
        left[:, stop:] -= errors @ root[start:stop, stop:]
    return q.to(torch.uint8), scale, zero
