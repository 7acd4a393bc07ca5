"""Factors trained so that leading components matter most: ordered dropout, a nested group lasso.

Horvath et al. 2024 (Maestro), arXiv:2308.14929, section 3. Nothing here outlives training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from paredown.techniques.companion import Companion
from paredown.techniques.distance import distillation
from paredown.techniques.recover import recalibrate


class Ordered(nn.Module):
    """A parametrization of a weight: the product of the leading components of two factors.

    ``first`` is (rank, columns), ``second`` (rows, rank). Training sees every component up to
    ``rank`` (a buffer that only falls), or up to ``cut`` while that is set; evaluation up to
    ``limit`` too, which is what will be deployed. The weight it is put on rests.
    """

    rank: Tensor

    def __init__(self, first: Tensor, second: Tensor, limit: int, transposed: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.register_buffer("rank", torch.tensor(len(first)))
        self.limit, self.transposed = limit, transposed
        self.cut: int | None = None

    def put_on(self, layer: nn.Module) -> Ordered:
        """Parametrize ``layer.weight`` with this; returns itself."""
        parametrize.register_parametrization(layer, "weight", self)
        held: Any = layer.get_submodule("parametrizations.weight")
        held.original.requires_grad_(False)
        return self

    def forward(self, weight: Tensor) -> Tensor:
        """The product, in the shape and dtype of ``weight``, of whose values nothing is used."""
        k = self.components()
        product = self.second[:, :k] @ self.first[:k]
        return (product.T if self.transposed else product.reshape(weight.shape)).to(weight.dtype)

    def components(self) -> int:
        """How many components take part now."""
        k = int(self.rank)
        if self.cut is not None:
            return min(k, self.cut)
        return k if self.training else min(k, self.limit)

    def kept(self, rank: int) -> tuple[Tensor, Tensor]:
        """Copies of the leading ``rank`` components of both factors."""
        first, second = self.first.detach()[:rank], self.second.detach()[:, :rank]
        return first.clone().contiguous(), second.clone().contiguous()

    @torch.no_grad()
    def shrink(self, threshold: float) -> None:
        """One proximal step of the nested lasso on both factors; zero components are gone."""
        k = int(self.rank)
        left = [shrinkage(f, threshold) for f in (self.first[:k], self.second[:, :k].T)]
        self.first[:k] *= left[0][:, None]
        self.second[:, :k] *= left[1]
        alive = int(torch.minimum(*left).count_nonzero())
        self.rank.fill_(max(1, alive))


def shrinkage(components: Tensor, threshold: float) -> Tensor:
    """Factors by which the proximal operator of the nested group lasso scales each row.

    The penalty is ``threshold * sum_b ||rows from b on||`` (Maestro, section 3.3). Groups are
    nested, so shrinking the norm of each suffix in turn, the shortest first, is exact (Jenatton et
    al. 2011, arXiv:1009.2139, theorem 1). Factors fall along the rows and end in exact zeros.
    """
    norms = components.norm(dim=1).tolist()
    steps = [0.0] * len(norms)
    inner = 0.0
    for b in range(len(norms) - 1, -1, -1):
        whole = math.hypot(norms[b], inner)
        steps[b] = max(0.0, 1.0 - threshold / whole) if whole > 0 else 0.0
        inner = steps[b] * whole
    return torch.tensor(steps, dtype=components.dtype).cumprod(0)


class OrderedDropout(Companion):
    """A second pass per step with one layer cut to its first components, then the lasso's step.

    The pair (layer, components) is uniform over all pairs, so that wide layers come up more often;
    its target is what the whole network made of the same inputs. ``calls`` yields inputs for fresh
    batch-norm statistics before the network is judged.
    """

    def __init__(
        self,
        layers: Iterable[Ordered],
        penalty: float,
        calls: Callable[[], Iterable[tuple[tuple[Any, ...], dict[str, Any]]]],
    ) -> None:
        super().__init__()
        # In a tuple: the student owns them.
        self._layers = tuple(layers)
        self.penalty, self.calls = penalty, calls

    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """Distance of the cut network's outputs from the whole one's; 0 once all ranks are 1."""
        layers = self._layers
        widths = torch.tensor([int(m.rank) - 1 for m in layers])
        total = int(widths.sum())
        if not total:
            return torch.zeros(())
        drawn = int(torch.randint(total, ()))
        place = int(torch.searchsorted(widths.cumsum(0), drawn, right=True))
        layer = layers[place]
        layer.cut = 1 + drawn - int(widths[:place].sum())
        try:
            return distillation(student(*inputs), out, target, 1.0)
        finally:
            layer.cut = None

    def stepped(self, rate: float) -> None:
        """The lasso's proximal step, as long as the optimizer's."""
        if self.penalty > 0:
            for layer in self._layers:
                layer.shrink(rate * self.penalty)

    def judging(self, student: nn.Module) -> None:
        """Batch norm sees other statistics behind the limits than in training."""
        recalibrate(student, self.calls())
