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
from paredown.graph.dependency import CONV
from paredown.graph.graph import Graph
from paredown.runtime.forms_lowrank import LowRankConv, LowRankLinear
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
from paredown.techniques.factorize.covariance import covariances
from paredown.techniques.quantize.common import Usage, is_conv1d, matrix, paths, site
from paredown.workload import Workload

THIN = 4
"""Below this break-even rank two layers only add an operator."""


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
        usage = Usage(workload, graph)
        ok: dict[str, str] = {}
        refused: dict[str, str] = {}
        for path, module in workload.model.named_modules():
            if not (isinstance(module, (nn.Linear, *CONV)) or is_conv1d(module)):
                continue
            name = site(path, workload, "weight")
            reason = usage.why_not(module) or self._refuse(module)
            if reason is None:
                ok[name] = path
            else:
                refused[name] = reason
        sites = Sites(tuple(s for s in ok if s not in refused), refused)
        return self._that_run(graph, sites)

    def _refuse(self, module: nn.Module) -> str | None:
        if isinstance(module, CONV) and module.groups > 1:
            return "grouped convolutions are already thin"
        rows, columns = _shape(module)
        limit = break_even(rows, columns)
        if limit < THIN:
            return f"a {rows} x {columns} matrix is already thin"
        rank = self._rank(rows, columns)
        if rank >= limit:
            return f"rank {rank} saves no multiply-accumulates (break-even {limit:.1f})"
        return None

    def _that_run(self, graph: Graph, sites: Sites) -> Sites:
        """Sites without those in whose place the model's own code wants the original layer."""
        from paredown.errors import CaptureError

        if not sites.ok:
            return sites
        try:
            self.preview(graph, sites)
        except (CaptureError, AttributeError):
            pass
        else:
            return sites
        good: list[str] = []
        refused = dict(sites.refused)
        for one in sites.ok:
            try:
                self.preview(graph, Sites((one,), {}, sites.overrides))
            except (CaptureError, AttributeError) as e:
                refused[one] = f"the model's code needs the layer itself: {e}"
            else:
                good.append(one)
        return Sites(tuple(good), refused, sites.overrides)

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
        found = [(s, p) for s, p in paths(workload, sites.ok) if _fits(workload, p)]
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
            if not _fits(workload, path):
                continue
            module: Any = workload.model.get_submodule(path)
            rows, columns = _shape(module)
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
            module: Any = editor.model.get_submodule(path)
            first, second = (decisions.tensors[f"{path}.{k}"] for k in ("first", "second"))
            bias = module.bias
            dtype = str(module.weight.dtype).removeprefix("torch.")
            editor.swap(path, _form(module, rank, dtype))
            if isinstance(module, CONV):
                first = first.reshape(rank, *module.weight.shape[1:])
                second = second.reshape(*second.shape, *(1 for _ in module.kernel_size))
            editor.tensor(f"{path}.first", "weight", first)
            editor.tensor(f"{path}.second", "weight", second)
            if bias is not None:
                editor.tensor(f"{path}.second", "bias", bias.detach())
            renames[path] = (f"{path}.first", f"{path}.second")
            lost = decisions.values["energy_lost"].get(path)
            notes.append(f"{path}: rank {rank}" + (f", {lost:.2%} of energy lost" if lost else ""))
        touched = [s for s, p in paths(workload, sites.ok) if p in renames]
        return editor.change(self, touched, decisions, renames=renames, notes=notes)

    def _at(self, sites: Sites, name: str) -> LowRank:
        own = self.at(sites, name)
        assert isinstance(own, LowRank)
        return own if own is not self else replace(self)


def break_even(rows: int, columns: int) -> float:
    """The rank at which two factors cost as much as one matrix."""
    return rows * columns / (rows + columns)


def factors(weight: Tensor, covariance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, values, right)`` with ``left * values @ right = weight``, best rank first.

    With a covariance C of the inputs (columns, columns) the decomposition is that of ``weight @
    S``, S the Cholesky factor of C, so truncation has the least error of outputs.
    """
    w = weight.double()
    if covariance is None:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return u.float(), s.float(), v.float()
    root = _root(covariance.double())
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    back = torch.linalg.solve_triangular(root, v, upper=False, left=False)
    return u.float(), s.float(), back.float()


def _root(covariance: Tensor) -> Tensor:
    """Cholesky factor, damped by as little as makes the matrix positive definite.

    The sums are float32: a dominant direction leaves errors above any fixed small damping.
    Raises ``NotApplicable`` where the inputs were not finite.
    """
    eye = torch.eye(len(covariance), dtype=torch.float64)
    mean = float(covariance.diagonal().mean()) or 1e-6
    for exponent in range(-6, 1):
        root, info = torch.linalg.cholesky_ex(covariance + 10.0**exponent * mean * eye)
        if int(info) == 0:
            return root
    raise NotApplicable("low-rank: the calibration inputs of a layer are not finite")


def _form(module: Any, rank: int, dtype: str) -> nn.Module:
    if not isinstance(module, CONV):
        rows, columns = _shape(module)
        return LowRankLinear(columns, rows, rank, module.bias is not None, dtype)
    padding = module.padding if isinstance(module.padding, str) else list(module.padding)
    return LowRankConv(
        [int(n) for n in module.weight.shape],
        rank,
        list(module.stride),
        padding,
        list(module.dilation),
        module.bias is not None,
        module.padding_mode,
        dtype,
    )


def _shape(module: Any) -> tuple[int, int]:
    """Rows and columns of a layer's matrix: outputs, and inputs times kernel positions."""
    shape = [int(n) for n in module.weight.shape]
    if is_conv1d(module):
        return shape[1], shape[0]
    columns = 1
    for n in shape[1:]:
        columns *= n
    return shape[0], columns


def _fits(workload: Workload, path: str) -> bool:
    module = workload.model.get_submodule(path)
    return isinstance(module, (nn.Linear, *CONV)) or is_conv1d(module)
