"""One-shot pruning of single weights, unstructured, N:M or in blocks, by magnitude, Wanda (Sun et
al. 2024, arXiv:2306.11695) or SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774), on calibration
inputs.

Cost law: a share s of the weights becomes zero. The size on disk of eager and inductor artefacts
falls, which store (1 - s) of the values and a bit per weight (`runtime.sparse_file`); that is all
it claims. Time falls on the native engine alone, where linears and 1 x 1 convolutions are sparse
enough for its sparse kernels (`runtime.native.sparse` holds their break-even): blocks of 16 outputs
by 32 inputs (bf16) or 64 (int8) are whole AMX tiles, 16 x 4 serves int8, bf16 and float32 by
vectors, 4 x 1 and single weights float32; zeros anywhere, in every precision, serve products of few
rows (64 at most) whose weights no cache holds, as bits and values. torch's, oneDNN's and OpenVINO's
products are dense. A backend that writes a format of its own writes it dense.

Deviations: every layer gets the same share; Wanda and magnitude compare within a row for all
patterns, SparseGPT's share is met in blocks of 128 columns, blocks of weights are compared over a
matrix by the mean of their squared scores (neither paper has them), and weights that no input
reaches keep their values where they stay; moments are read once from the original network, not
layer after layer from the pruned one. Limits: linears, ``Conv1D`` and ungrouped 2-D convolutions
(unfolded); other convolutions and shared weights are refused; an N:M pattern must divide the
columns. Layers thinner than ``least`` columns stay.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    Needs,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.factorize.covariance import covariances
from paredown.techniques.quantize.common import (
    Usage,
    is_conv1d,
    matrix,
    paths,
    weighted_sites,
)
from paredown.techniques.sparsify import pruners
from paredown.workload import Workload

METHODS = ("magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True)
class OneShotPruning(Rewrite):
    """Zero single weights, N:M or anywhere, in one pass over calibration inputs (Wanda 2024,
    SparseGPT 2023).
    """

    name: ClassVar[str] = "one-shot-pruning"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.SPARSITY
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})

    sparsity: Annotated[
        float, Choice(0.5, 0.6, 0.7, 0.8, 0.9), "share of each layer's weights zeroed"
    ] = 0.5
    pattern: Annotated[
        str,
        Choice("unstructured", "2:4", "4:8", "4x1", "16x4", "16x32", "16x64"),
        "where zeros may lie; n:m keeps n of every m, RxC goes by blocks of outputs x inputs",
    ] = "unstructured"
    method: Annotated[str, Choice(*METHODS), "how weights are ranked"] = "sparsegpt"
    least: Annotated[int, "columns a layer must have to be pruned"] = 16

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Two shares, the pattern that hardware knows, and blocks that the native engine skips."""
        return {
            "0.5": {},
            "0.7": {"sparsity": 0.7},
            "2:4": {"pattern": "2:4"},
            "16x32": {"pattern": "16x32", "sparsity": 0.7},
        }

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.sparsity < 1:
            raise InputError(f"sparsity must lie in (0, 1), got {self.sparsity}")
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r}: {', '.join(METHODS)}")
        try:
            pruners.kept_of(self.pattern)
        except ValueError as e:
            raise InputError(str(e)) from None

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears, ``Conv1D`` and ungrouped 2-D convolutions, ``path:weight``."""
        usage = Usage(workload, graph)

        return weighted_sites(
            workload, lambda kind, module: self._refuse(kind, module) or usage.why_not(module)
        )

    def _refuse(self, kind: str, module: Any) -> str | None:
        if kind not in ("linear", "conv"):
            return "only linear layers and convolutions are pruned"
        if kind == "conv":
            if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
                return "only 2-D convolutions with padding in numbers are unfolded"
            if module.groups > 1:
                return "grouped convolutions have few weights, each of its own inputs"
        columns = matrix(module).flatten(1).shape[1]
        if columns < self.least:
            return f"{columns} columns are too few to prune (least {self.least})"
        pattern = pruners.kept_of(self.pattern)
        if isinstance(pattern, tuple) and columns % pattern[1]:
            return f"{self.pattern} does not divide its {columns} columns"
        return None

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Prune every site's weight; the new weights and their errors are recorded."""
        found = paths(workload, sites.ok)
        moments = covariances(workload, [p for _, p in found])
        lost: dict[str, float] = {}
        tensors: dict[str, Tensor] = {}
        for name, path in found:
            module: Any = workload.model.get_submodule(path)
            moment = moments.get(path)
            if moment is None or not bool(moment.isfinite().all()):
                raise NotApplicable(f"{self.name}: the inputs of {path} are not finite numbers")
            own = self.at(sites, name)
            weight = matrix(module).flatten(1).float()
            pruned = own._pruned(weight, moment)
            lost[path] = pruners.error(weight, pruned, moment)
            pruned = pruned.to(module.weight.dtype)
            pruned = pruned.t() if is_conv1d(module) else pruned.reshape(module.weight.shape)
            tensors[path] = pruned.contiguous()
        zeros = {p: round(float((t == 0).float().mean()), 6) for p, t in tensors.items()}
        return Decisions({"zeros": zeros, "error": lost}, tensors)

    def _pruned(self, weight: Tensor, moment: Tensor) -> Tensor:
        asked = (self.sparsity, pruners.kept_of(self.pattern))
        if self.method == "magnitude":
            return pruners.magnitude(weight, *asked)
        if self.method == "wanda":
            return pruners.wanda(weight, moment, *asked)
        return pruners.sparsegpt(weight, moment, *asked)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Weights of the same shapes; their zeros are not known."""
        found = [p for _, p in paths(workload, sites.ok)]
        weights: dict[str, Any] = {p: workload.model.get_submodule(p).weight for p in found}
        zeros: dict[str, float] = {}
        return Decisions(
            {"zeros": zeros, "error": {}}, {p: torch.empty_like(w) for p, w in weights.items()}
        )

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the pruned weights in and mark them, so that later training keeps their zeros."""
        editor = Editor(workload)
        notes: list[str] = []
        lost = decisions.values["error"]
        for path, weight in decisions.tensors.items():
            editor.tensor(path, "weight", weight)
            editor.attach(path, "keep_zeros")
        if lost:
            worst = max(lost, key=lambda p: lost[p])
            share = decisions.values["zeros"]
            notes.append(f"{min(share.values()):.1%} to {max(share.values()):.1%} of weights zero")
            notes.append(f"largest error of a layer's outputs {lost[worst]:.2%}, {worst}")
            notes.append(
                "smaller on disk, as a bit mask and values; faster on the native engine alone"
            )
        return editor.change(self, sites.ok, decisions, notes=notes)
