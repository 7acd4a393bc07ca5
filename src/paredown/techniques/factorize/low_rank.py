"""Low-rank factorisation: a layer becomes two thin ones (Denil et al. 2013, arXiv:1306.0543; for
convolutions Zhang et al. 2016, arXiv:1505.06798), by a singular value decomposition that is best
for the weights, or for the outputs on calibration inputs (whitened as in SVD-LLM, Wang et al. 2024,
arXiv:2403.07378, eq. 3).

Cost law: a matrix of O x I at rank r costs r (O + I) instead of O I multiply-accumulates; the two
are equal at the break-even rank O I / (O + I). For a k x k convolution I counts the kernel's
positions.

Deviations: convolutions are split over output channels only (k x k to r, then 1 x 1). Limits:
grouped and transposed convolutions, tied weights and layers whose weight is read from outside are
refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Range,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.factorize.common import (
    FACTORS,
    break_even,
    factor_sites,
    factors,
    factors_in,
    fits,
    shape_of,
)
from paredown.techniques.factorize.covariance import covariances
from paredown.techniques.quantize.common import matrix, paths
from paredown.workload import Workload


@dataclass(frozen=True)
class LowRank(Rewrite):
    """Split linear layers and convolutions in two at a lower rank (Denil et al. 2013)."""

    name: ClassVar[str] = "low-rank"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "factorize"
    stage: ClassVar[Stage] = Stage.RANK
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_SHAPE, Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.SHAPES, Lowers.TIME})
    maturity: ClassVar[Any] = "stable"

    share: Annotated[
        float, Choice(0.25, 0.375, 0.5, 0.625, 0.75), "rank, as a share of the break-even rank"
    ] = 0.5
    energy: Annotated[
        float, Range(0.0, 1.0), "if above 0: keep this share of squared singular values instead"
    ] = 0.0
    aware: Annotated[
        bool, Choice(False, True), "least error of outputs on calibration inputs, not of weights"
    ] = False
    rank: Annotated[int, "a fixed rank (0: by share or energy)"] = 0
    round_to: Annotated[int, Choice(1, 8), "ranks stay a multiple of this where they can"] = 8

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Two ranks, fitted to the outputs on calibration inputs."""
        return {f"{s:g}": {"share": s, "aware": True} for s in (0.75, 0.5)}

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.share <= 1:
            raise InputError(f"share must lie in (0, 1], got {self.share}")
        if not 0 <= self.energy <= 1:
            raise InputError(f"energy must lie in [0, 1], got {self.energy}")
        if self.rank < 0 or self.round_to < 1:
            raise InputError("rank must be at least 0 and round_to at least 1")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Every linear layer and plain convolution whose rank can fall below break-even."""
        return factor_sites(self, workload, graph, self._refuse)

    def _refuse(self, module: nn.Module) -> str | None:
        rows, columns = shape_of(module)
        limit, rank = break_even(rows, columns), self._rank(rows, columns)
        if rank >= limit:
            return f"rank {rank} saves no multiply-accumulates (break-even {limit:.1f})"
        return None

    def _rank(self, rows: int, columns: int, values: Tensor | None = None) -> int:
        """The rank for one matrix; ``values`` are its singular values where they are known."""
        full = min(rows, columns)
        if self.rank:
            return min(self.rank, full)
        if self.energy > 0 and values is not None:
            mass = values.double().square().cumsum(0)
            wanted = self.energy * float(mass[-1])
            # By comparison, not by search: rounding may leave the last sum a hair below.
            rank = min(full, 1 + int((mass < wanted * (1 - 1e-12)).sum()))
        else:
            rank = max(1, int(self.share * break_even(rows, columns)))
        if rank >= 2 * self.round_to:
            rank = min(full, self.round_to * round(rank / self.round_to))
        return rank

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Factor every site's weight; the factors and ranks are recorded."""
        found = [(s, p) for s, p in paths(workload, sites.ok) if fits(workload, p)]
        by_path = {p: self._at(sites, s) for s, p in found}
        wanted = [p for p, own in by_path.items() if own.aware]
        inputs = covariances(workload, wanted) if wanted else {}
        ranks: dict[str, int] = {}
        tensors: dict[str, Tensor] = {}
        lost: dict[str, float] = {}
        for path, own in by_path.items():
            module: Any = workload.model.get_submodule(path)
            w = matrix(module).float().flatten(1)
            left, values, right = factors(w, inputs.get(path))
            rank = own._rank(*w.shape, values=values)
            if rank >= break_even(*w.shape) and not own.rank:
                continue  # this much energy needs more than it would save
            ranks[path] = rank
            root = values[:rank].sqrt()
            dtype = module.weight.dtype
            tensors[f"{path}.second"] = (left[:, :rank] * root).to(dtype).contiguous()
            tensors[f"{path}.first"] = (root[:, None] * right[:rank]).to(dtype).contiguous()
            total = float(values.square().sum())
            lost[path] = float(values[rank:].square().sum()) / total if total else 0.0
        if not ranks:
            raise NotApplicable(
                f"{self.name}: no layer keeps {self.energy:g} of its energy for less"
            )
        return Decisions({"ranks": ranks, "energy_lost": lost}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Ranks by share; under ``energy`` only weights tell the rank, so a share stands in."""
        ranks: dict[str, int] = {}
        tensors: dict[str, Tensor] = {}
        for s, path in paths(workload, sites.ok):
            if not fits(workload, path):
                continue
            module: Any = workload.model.get_submodule(path)
            rows, columns = shape_of(module)
            rank = ranks[path] = self._at(sites, s)._rank(rows, columns)
            kind: Any = module.weight.dtype
            tensors[f"{path}.second"] = torch.empty(rows, rank, dtype=kind)
            tensors[f"{path}.first"] = torch.empty(rank, columns, dtype=kind)
        return Decisions({"ranks": ranks, "energy_lost": {}}, tensors)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each layer for its two factors."""
        editor = Editor(workload)
        renames: dict[str, tuple[str, ...]] = {}
        notes: list[str] = []
        for path, rank in decisions.values["ranks"].items():
            factors_in(editor, path, *(decisions.tensors[f"{path}.{k}"] for k in FACTORS))
            renames[path] = (f"{path}.first", f"{path}.second")
            lost = decisions.values["energy_lost"].get(path)
            notes.append(f"{path}: rank {rank}" + (f", {lost:.2%} of energy lost" if lost else ""))
        touched = [s for s, p in paths(workload, sites.ok) if p in renames]
        return editor.change(self, touched, decisions, renames=renames, notes=notes)

    def _at(self, sites: Sites, name: str) -> LowRank:
        own = self.at(sites, name)
        assert isinstance(own, LowRank)
        return own if own is not self else replace(self)
