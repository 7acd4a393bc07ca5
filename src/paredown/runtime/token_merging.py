"""Token merging by bipartite soft matching (ToMe; Bolya et al. 2023, arXiv:2210.09461, section 3).

Patches are split in turn into a source and a target set; each source finds the target whose key is
most like its own, and the ``removed`` most alike pairs become one token each, averaged by size.
Class tokens take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.runtime.tokens import METHODS, Flow, rows, weighed


@dataclass
class Merging:
    """Merge the most alike; the first ``prefix`` tokens (class tokens, registers) stay."""

    prefix: int

    def begin(self, flow: Flow, x: Tensor) -> None:
        """Nothing to prepare."""

    def attends(self, removed: int) -> bool:
        """Attention is looked at only where tokens are merged."""
        return removed > 0

    def attend(
        self, flow: Flow, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], removed: int
    ) -> tuple[Tensor, Tensor]:
        """Proportional attention, and the keys averaged over heads ``(batch, tokens, dim)``."""
        return weighed(flow, q, k, v, options), k.mean(1)

    def reduce(self, flow: Flow, x: Tensor, chosen_by: Tensor, removed: int) -> Tensor:
        """Merge ``removed`` pairs; the class tokens, the sources left, then the targets."""
        p = self.prefix
        sizes = flow.sizes_of(x)
        kept, source, target = match(chosen_by[:, p:], removed, odd=p % 2 == 1)
        a, b = sides(x[:, p:], odd=p % 2 == 1)
        a_size, b_size = sides(sizes[:, p:], odd=p % 2 == 1)
        places = torch.arange(b.shape[1], device=x.device)
        into = (places[:, None] == target[:, None, :]).to(x.dtype)  # (batch, targets, removed)
        weight = rows(a_size, source).unsqueeze(-1).to(x.dtype)
        old = b_size.unsqueeze(-1).to(x.dtype)
        new = old + into @ weight
        merged = (b * old + into @ (rows(a, source) * weight)) / new
        left = rows(a_size, kept)
        flow.sizes = torch.cat([sizes[:, :p], left, new.squeeze(-1).to(sizes.dtype)], 1)
        return torch.cat([x[:, :p], rows(a, kept), merged], 1)


def sides(x: Tensor, *, odd: bool) -> tuple[Tensor, Tensor]:
    """Sources and targets of ``(batch, patches, ...)``: every second one, from the first on.

    ``odd`` starts the targets instead, as when one class token stands before the patches.
    """
    first, second = x[:, 0::2], x[:, 1::2]
    return (second, first) if odd else (first, second)


def match(keys: Tensor, removed: int, *, odd: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(kept, source, target)`` indices for keys ``(batch, patches, dim)`` (section 3, steps 1-4).

    ``source`` and ``target`` are ``(batch, removed)``: which source goes into which target;
    ``kept`` are the other sources in order.
    """
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    a, b = sides(unit, odd=odd)
    best, at = (a @ b.transpose(-1, -2)).max(-1)
    order = best.argsort(dim=-1, descending=True)
    source = order[:, :removed]
    kept = order[:, removed:].sort(dim=-1).values
    return kept, source, at.gather(1, source)


def _merging(settings: dict[str, Any]) -> Merging:
    return Merging(int(settings["prefix"]))


METHODS["merging"] = _merging
