"""Graph-based token propagation (GTP; Xu et al. 2024, arXiv:2311.03035, sections 3.2 to 3.4).

The patches that attention neither looks at nor keeps to themselves are given up; before they go,
what they hold is sent along a fixed sparse graph to the patches that stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.errors import InputError
from paredown.runtime.tokens import METHODS, Flow, rows


@dataclass
class Propagation:
    """Give up the lowest scores; send them on with weight ``alpha`` along a graph of patches.

    ``grid`` is the patches' height and width, ``kept`` the share of attention weights kept,
    ``noise`` one fixed score per place in the stead of attention's (a control), or empty.
    """

    prefix: int
    grid: tuple[int, int]
    alpha: float
    graph: str
    neighbours: int
    kept: float
    rescue: bool
    noise: tuple[float, ...] = ()

    def begin(self, flow: Flow, x: Tensor) -> None:
        """Number the patches; link those that are alike where the graph asks for it."""
        n = self.grid[0] * self.grid[1]
        if x.shape[1] != self.prefix + n:
            raise InputError(
                f"{x.shape[1]} tokens came where the image's {self.grid[0]} x {self.grid[1]} "
                f"patches and {self.prefix} class tokens were expected: apply it at this size"
            )
        flow.places = torch.arange(n, device=x.device).expand(x.shape[0], n)
        if self.alpha and self.graph != "spatial":
            flow.links = self._alike(x[:, self.prefix :], flow.places)

    def attends(self, removed: int) -> bool:
        """Attention's weights are wanted for choosing, and for thinning them out."""
        return removed > 0 or self.kept < 1

    def attend(
        self, flow: Flow, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], removed: int
    ) -> tuple[Tensor, Tensor]:
        """Attention in the open, and each token's score ``(batch, tokens)``.

        The score is the weight a token gives itself times the sum of what all give it, each the
        largest over heads.
        """
        scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
        logits = q @ k.transpose(-1, -2) * scale
        bias = flow.bias(q)
        weights = (logits if bias is None else logits + bias).softmax(-1)
        if self.kept < 1:
            weights = strongest(weights, self.kept)
        own = weights.diagonal(dim1=-2, dim2=-1).amax(1)
        return weights @ v, own * weights.sum(-2).amax(1)

    def reduce(self, flow: Flow, x: Tensor, chosen_by: Tensor, removed: int) -> Tensor:
        """The class tokens, then the patches that stay, in order."""
        p, places = self.prefix, flow.places
        assert places is not None
        patches, scores = x[:, p:], chosen_by[:, p:]
        if self.noise:
            scores = rows(torch.tensor(self.noise, device=x.device).expand(len(x), -1), places)
        order = scores.argsort(dim=-1)
        gone, stay = order[:, :removed], order[:, removed:].sort(dim=-1).values
        left = rows(patches, stay)
        flow.places = rows(places, stay)
        if self.alpha:
            links = self.alpha * self._links(flow, flow.places, rows(places, gone), x.dtype)
            left = left + links @ rows(patches, gone)
            sizes = flow.sizes_of(x)
            own = sizes[:, p:]
            sent = links.to(sizes.dtype) @ rows(own, gone).unsqueeze(-1)
            flow.sizes = torch.cat([sizes[:, :p], rows(own, stay) + sent.squeeze(-1)], 1)
        return torch.cat([x[:, :p], left], 1)

    def _links(self, flow: Flow, stay: Tensor, gone: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights from patches that go to those that stay, ``(batch, stay, gone)``."""
        batch, n = len(stay), self.grid[0] * self.grid[1]
        if flow.links is None:
            links = beside(stay, gone, self.grid).to(dtype)
            degree = degrees(stay, self.grid)[:, :, None] * degrees(gone, self.grid)[:, None, :]
            links = links / degree.to(dtype).sqrt()
        else:
            index = stay[:, :, None] * n + gone[:, None, :]
            flat = rows(flow.links.reshape(batch, n * n), index.reshape(batch, -1))
            links = flat.reshape(batch, stay.shape[1], gone.shape[1])
        if not self.rescue:
            return links
        alone = links.sum(1, keepdim=True) == 0
        nearest = distance(stay, gone, self.grid).argmin(1, keepdim=True)
        first = torch.arange(stay.shape[1], device=stay.device)[None, :, None] == nearest
        return links + (alone & first).to(links.dtype)

    def _alike(self, patches: Tensor, places: Tensor) -> Tensor:
        """``D^-1/2 A D^-1/2`` of the graph of alike patches, joined with the grid if mixed."""
        unit = patches / patches.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        n = patches.shape[1]
        itself = torch.eye(n, dtype=patches.dtype, device=patches.device)
        alike = unit @ unit.transpose(-1, -2) - 3 * itself  # below any cosine
        least = alike.topk(min(self.neighbours, n - 1), dim=-1).values[..., -1:]
        linked = alike >= least
        if self.graph == "mixed":
            linked = linked | beside(places, places, self.grid)
        a = linked.to(patches.dtype)
        root = a.sum(-1).rsqrt()
        return root.unsqueeze(-1) * a * root.unsqueeze(-2)


def strongest(weights: Tensor, share: float) -> Tensor:
    """The largest ``share`` of each head's whole map ``(batch, heads, n, n)``, zero elsewhere."""
    flat = weights.flatten(-2)
    least = flat.topk(math.ceil(share * flat.shape[-1]), dim=-1).values[..., -1:]
    return torch.where(weights >= least.unsqueeze(-1), weights, torch.zeros_like(weights))


def distance(one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """Squared distance on the grid between places, ``(batch, m)`` and ``(batch, n)`` to (m, n)."""
    down, across = _apart(one, other, grid)
    return down * down + across * across


def beside(one: Tensor, other: Tensor, grid: tuple[int, int]) -> Tensor:
    """Whether places touch, at a side or a corner; no place touches itself."""
    down, across = _apart(one, other, grid)
    return (down.abs() <= 1) & (across.abs() <= 1) & (one[:, :, None] != other[:, None, :])


def degrees(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """How many neighbours each place has on the grid: 8 within, 5 at a side, 3 in a corner."""
    height, width = grid
    row, column = places // width, places % width
    rows_ = 1 + (row > 0).long() + (row < height - 1).long()
    columns = 1 + (column > 0).long() + (column < width - 1).long()
    return rows_ * columns - 1


def _apart(one: Tensor, other: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    a, b = one[:, :, None], other[:, None, :]
    return a // grid[1] - b // grid[1], a % grid[1] - b % grid[1]


def _propagation(settings: dict[str, Any]) -> Propagation:
    height, width = settings["grid"]
    return Propagation(
        prefix=int(settings["prefix"]),
        grid=(int(height), int(width)),
        alpha=float(settings["alpha"]),
        graph=str(settings["graph"]),
        neighbours=int(settings["neighbours"]),
        kept=float(settings["kept"]),
        rescue=bool(settings["rescue"]),
        noise=tuple(float(v) for v in settings["noise"]),
    )


METHODS["propagation"] = _propagation
