"""A node of a routing space: per-token gates, a block, a way down (Ma et al. 2023, 2308.03409).

Every token that is present decides by hard gates whether the node's block transforms it, whether it
stays at its scale and whether it goes on to the next coarser one. `Node` runs in two ways with one
result: masked (everything computed, then multiplied by the gates; differentiable) and gathered
(only the rows whose gates are open are computed).

A token that is absent is a row of zeros, and counts as zeros among the keys of attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.graph.varying import run_for
from paredown.nn.mlp import Mlp

TEMPERATURE = 1.0
"""Of the gates' sigmoid while training."""
OPEN = 2.5
"""Bias that a gate's logits begin with: most tokens take every path at first."""


class RouteGate(nn.Module):
    """Layer norm and a linear to the logits of ``gates`` decisions; open where they are positive.

    Forward values are 0 or 1; gradients are the sigmoid's (straight through). ``noise`` times
    logistic noise is added while training: with 1 it is a Gumbel-sigmoid, with 0 what runs later.
    """

    def __init__(self, channels: int, gates: int, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, gates)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., channels)`` to ``(..., gates)``."""
        logits = self.proj(self.norm(x))
        if self.training and self.noise:
            uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + self.noise * (uniform.log() - (-uniform).log1p())
        soft = (logits / TEMPERATURE).sigmoid()
        hard = (logits > 0).to(soft.dtype)
        return hard + soft - soft.detach() if soft.requires_grad else hard


class ReducedBlock(nn.Module):
    """Pre-norm encoder block whose keys come from a map reduced by a strided convolution (PVT v2).

    Tokens lie on a square of ``side x side``, rows first; keys on one of ``side / reduction``.
    Every token's own work is the same whichever tokens ask: attention over all keys and an MLP.
    """

    def __init__(
        self, channels: int, num_heads: int, side: int, reduction: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        if channels % num_heads or side % reduction:
            raise InputError(
                f"{num_heads} heads of {channels} channels, maps of {side} reduced by {reduction}: "
                "the first must divide the second, the last the third"
            )
        self.num_heads, self.side = num_heads, side
        hidden = round(channels * mlp_ratio)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.reduce: nn.Conv2d | None = None
        self.reduced_norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.reduced_norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2, self.mlp = nn.LayerNorm(channels, eps=1e-6), Mlp(channels, hidden)
        keys = (side // reduction) ** 2
        self.keys_macs = keys * 2 * channels**2 + (side**2 * channels**2 if reduction > 1 else 0)
        """MACs of making the keys and values of one image."""
        self.token_macs = 2 * channels**2 + 2 * keys * channels + 2 * channels * hidden
        """MACs of one token that asks."""

    def keys(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(batch, heads, keys, head_dim)`` of normalised tokens."""
        if self.reduce is not None and self.reduced_norm is not None:
            square = normed.mT.unflatten(2, (self.side, self.side))
            normed = self.reduced_norm(self.reduce(square).flatten(2).mT)
        kv = self.kv(normed).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def answer(self, x: Tensor, normed: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
        """What the block makes of tokens ``(batch, n, channels)``, ``normed`` by its first norm."""
        x = x + self.proj(self._attend(self.q(normed), keys))
        return x + self.mlp(self.norm2(x))

    def rows(self, x: Tensor, normed: Tensor, keys: tuple[Tensor, Tensor], at: Tensor) -> Tensor:
        """What the block makes of the rows of ``at`` ``(batch, n)``, as ``(rows, channels)``.

        Images with fewer rows are padded, in attention alone, to the image that has most.
        """
        image, seat = at.nonzero()[:, 0], (at.cumsum(1) - 1)[at]
        x, q = x[at], self.q(normed[at])
        asking = q.new_zeros(len(at), int(seat.max()) + 1, q.shape[-1])
        asking[image, seat] = q
        x = x + self.proj(self._attend(asking, keys)[image, seat])
        return x + self.mlp(self.norm2(x))

    def _attend(self, q: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
        heads = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, *keys).transpose(1, 2).flatten(2)


class Merge(nn.Module):
    """Four neighbours to one token of the next scale: a linear on their concatenation, a norm."""

    def __init__(self, channels: int, outputs: int, side: int) -> None:
        super().__init__()
        if side % 2:
            raise InputError(f"a map of side {side} has no halves")
        self.side = side
        self.proj, self.norm = nn.Linear(4 * channels, outputs), nn.LayerNorm(outputs)
        self.cell_macs = 4 * channels * outputs
        """MACs of one token made."""

    def cells(self, x: Tensor) -> Tensor:
        """``(batch, side^2, c)`` to ``(batch, side^2 / 4, 4, c)``: the neighbours of every cell."""
        half = self.side // 2
        return x.unflatten(1, (half, 2, half, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, cells: Tensor) -> Tensor:
        """Cells ``(..., 4, channels)`` to tokens ``(..., outputs)``."""
        return self.norm(self.proj(cells.flatten(-2)))


@dataclass(frozen=True)
class Work:
    """Amounts of a node's four kinds of work: gates decided, maps of keys made, tokens through the
    block, tokens merged. As shares of what a node can do, as counts, or as MACs of one of each.
    """

    gates: float = 1.0
    keys: float = 1.0
    tokens: float = 1.0
    merged: float = 1.0


@dataclass(frozen=True)
class Went:
    """What a node did with its tokens.

    ``x`` are the tokens after the block; ``stays`` and ``ends`` ``(batch, n, 1)`` mark those that
    stay at the scale and those whose way is over; ``lower`` ``(batch, n / 4, outputs)`` and
    ``below`` ``(batch, n / 4, 1)`` are the tokens that go down, absent ones zero. ``present`` and
    ``asks`` ``(batch, n, 1)`` mark those that were there and those that took the block.
    """

    x: Tensor
    stays: Tensor
    ends: Tensor
    lower: Tensor | None
    below: Tensor | None
    present: Tensor
    asks: Tensor

    def counts(self) -> Tensor:
        """Amounts of each kind of `Work` for each image, ``(batch, 4)`` in float64."""
        none = self.asks.new_zeros(len(self.asks))
        merged = none if self.below is None else self.below.sum((1, 2))
        gates, asks = self.present.sum((1, 2)), self.asks.sum((1, 2))
        return torch.stack([gates, self.asks.amax((1, 2)), asks, merged], 1).double()


class Node(nn.Module):
    """A place (layer, scale) of the routing space.

    ``outputs`` are the channels of the next scale, None where there is no way down. A ``last`` node
    passes nothing on: all its tokens end here. Without ``gated`` every token takes every path.
    """

    def __init__(
        self, block: ReducedBlock, channels: int, outputs: int | None, *, last: bool, gated: bool
    ) -> None:
        super().__init__()
        self.block, self.last = block, last
        self.merge: Merge | None = None
        if outputs is not None and not last:
            self.merge = Merge(channels, outputs, block.side)
        # Block, stay, down.
        self.decisions = 1 if last else 2 if self.merge is None else 3
        self.gate = RouteGate(channels, self.decisions) if gated else None
        cell_macs = 0 if self.merge is None else self.merge.cell_macs
        gate_macs = channels * self.decisions if gated else 0
        self.macs = Work(gate_macs, block.keys_macs, block.token_macs, cell_macs)
        tokens = block.side**2
        self.full = Work(tokens, 1, tokens, 0 if self.merge is None else tokens // 4)
        """Counts of a run whose gates are all open."""
        self.expected = Work()
        """Shares of ``full`` that a preview expects."""

    def forward(self, x: Tensor, present: Tensor, *, gathered: bool) -> Went:
        """Tokens ``(batch, n, channels)`` of which ``present`` ``(batch, n, 1)`` are there."""
        gates = self._gates(x, present, gathered=gathered)
        asks = gates[..., :1]
        x = self._gathered(x, present, asks) if gathered else self._masked(x, present, asks)
        if self.last:
            return Went(x, torch.zeros_like(present), present, None, None, present, asks)
        stays = gates[..., 1:2]
        ends = present * (1 - stays)
        if self.merge is None:
            return Went(x, stays, ends, None, None, present, asks)
        downs = gates[..., 2:3]
        cells, below = self.merge.cells(x * downs), self.merge.cells(downs).amax(2)
        if gathered:
            at = below[..., 0] > 0
            lower = x.new_zeros(*at.shape, self.merge.proj.out_features)
            if at.any():
                lower[at] = self.merge(cells[at])
        else:
            with run_for(self.expected.merged):
                lower = self.merge(cells) * below
        return Went(x, stays, ends * (1 - downs), lower, below, present, asks)

    def _gates(self, x: Tensor, present: Tensor, *, gathered: bool) -> Tensor:
        """``(batch, n, decisions)``, zero for tokens that are not there."""
        if self.gate is None:
            return present.expand(-1, -1, self.decisions)
        if not gathered:
            with run_for(self.expected.gates):
                return self.gate(x) * present
        at = present[..., 0] > 0
        gates = x.new_zeros(*at.shape, self.decisions)
        if at.any():
            gates[at] = self.gate(x[at])
        return gates

    def _masked(self, x: Tensor, present: Tensor, asks: Tensor) -> Tensor:
        normed = self.block.norm1(x)
        with run_for(self.expected.keys):
            keys = self.block.keys(normed * present)
        with run_for(self.expected.tokens):
            made = self.block.answer(x, normed, keys)
        return made if self.gate is None else x + asks * (made - x)

    def _gathered(self, x: Tensor, present: Tensor, asks: Tensor) -> Tensor:
        at = asks[..., 0] > 0
        images = at.any(1)
        if not images.any():
            return x
        normed = self.block.norm1(x[images])
        keys = self.block.keys(normed * present[images])
        x = x.clone()
        x[at] = self.block.rows(x[images], normed, keys, at[images])
        return x
