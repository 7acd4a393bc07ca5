"""LLM.int8(): vector-wise int8 linears, a few outlier input columns in float.

Dettmers et al. 2022, arXiv:2208.07339, sections 3.1 and 3.2; their code is bitsandbytes. Each row
of the input and each output of the weight has a scale of its own; the input columns that hold
outliers are multiplied in float, so that their size does not coarsen the rest.

Deviations: the columns are taken from calibration data, the ``columns`` largest of each layer, not
from every input by a threshold of 6: the outliers of trained transformers sit in the same few
columns in every layer and input (section 4), the weights of these columns can then stay in float
too, and shapes are fixed. A stray outlier elsewhere coarsens its own row alone. The float part has
the model's dtype, not float16.
Cost law: weights a quarter of fp32 plus ``columns`` of ``in_features``; an int8 product, a float
one of that share, and one pass over the input. Limits: linears and ``Conv1D`` with at least four
times as many inputs as float columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.forms_mixed import MixedInt8Linear
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
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    matrix,
    paths,
    symmetric,
    weighted_sites,
)
from paredown.techniques.quantize.observe import input_peaks
from paredown.workload import Workload

OUTLIER = 6.0
"""A column this many times as large as the middle one counts as an outlier (their threshold,
for inputs of unit size).
"""


@dataclass(frozen=True)
class LLMInt8(Rewrite):
    """Vector-wise int8 linears with outlier columns in float (Dettmers et al. 2022)."""

    name: ClassVar[str] = "llm-int8"
    paper: ClassVar[str | None] = "llm-int8"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    maturity: ClassVar[Any] = "trial"

    columns: Annotated[int, Choice(8, 0, 32), "input columns of each layer kept in float"] = 8

    def __post_init__(self) -> None:
        if self.columns < 0:
            raise InputError(f"columns must be at least 0, got {self.columns}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and ``Conv1D``, ``path:weight``."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            if kind != "linear":
                return "only linear layers are multiplied by rows"
            why = usage.why_not(module)
            if why:
                return why
            inputs = matrix(module).shape[1]
            if inputs < 4 * self.columns:
                return f"{self.columns} float columns are too many of its {inputs} inputs"
            return None

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Each site's columns with the largest inputs, from one pass over the calibration data."""
        at = paths(workload, sites.ok)
        seen = input_peaks(workload, [p for _, p in at])
        columns: dict[str, list[int]] = {}
        outliers: dict[str, int] = {}
        for name, path in at:
            peaks = seen[path].values
            if peaks is None:
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
            order = torch.sort(peaks, descending=True, stable=True).indices
            columns[path] = sorted(order[: self.at(sites, name).columns].tolist())
            outliers[path] = int((peaks > OUTLIER * peaks.median()).sum())
        return Decisions({"columns": columns, "outliers": outliers})

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same shape: the first columns."""
        at = paths(workload, sites.ok)
        return Decisions({"columns": {p: list(range(self.at(sites, s).columns)) for s, p in at}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its form; a note names layers with more outliers than columns."""
        edit = Editor(workload)
        chosen = decisions.values["columns"]
        for _, path in paths(workload, sites.ok):
            edit.swap(path, mixed(edit.model.get_submodule(path), chosen[path]))
        found = decisions.values.get("outliers", {})
        short = {p: n for p, n in found.items() if n > len(chosen[p])}
        notes = [
            f"{p}: {n} columns are over {OUTLIER:g} times the middle one, {len(chosen[p])} in float"
            for p, n in short.items()
        ]
        return edit.change(self, sites.ok, decisions, notes=notes)


def mixed(old: Any, columns: list[int]) -> MixedInt8Linear:
    """The mixed form of a float linear or ``Conv1D``, these input columns in float."""
    weight = matrix(old)
    rows, inputs = weight.shape
    kind = str(weight.dtype).removeprefix("torch.")
    new = MixedInt8Linear(inputs, rows, len(columns), dtype_name(old.bias), kind, weight.device)
    index = torch.tensor(columns, dtype=torch.int64, device=weight.device)
    keep = torch.ones(inputs, device=weight.device).index_fill(0, index, 0.0)
    packed, new.scale = symmetric(weight * keep.to(weight.dtype), 8, per_channel=True)
    new.weight = nn.Parameter(packed, requires_grad=False)
    new.columns, new.keep = index, keep
    if new.outliers is not None:
        held = weight.index_select(1, index).contiguous()
        new.outliers.weight = nn.Parameter(held, requires_grad=False)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
    return new
