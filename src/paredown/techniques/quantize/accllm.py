"""2:4 sparse weights of 2 bits, sinks and a window for attention, a cache of 4 bits (AccLLM).

Liang et al. 2025, "AccLLM: accelerating long-context LLM inference via algorithm-hardware
co-design", arXiv:2505.03745, section III (W2A8KV4). Two of every four weights are kept by their
second-order cost and coded in 2 bits on even grids of groups, column by column, the columns to the
right making up for what is lost (SparseGPT: Frantar & Alistarh 2023, arXiv:2301.00774). Inputs are
8 bits a row; the cache keeps the first tokens and the last ones, 4 bits a number.

Deviations: the mask is chosen before the grids; a group's grid is that of its kept weights' range
or of one shrunk to the least error; keys and values are coded by token and head; no fine-tuning
(``recover`` does not train packed weights). The paper's accelerator is not modelled.
Cost law: ``2 + 32 / group_size`` bits a weight, and ``(sinks + window) (head_dim / 2 + 4)`` bytes
for each head's keys and values, whatever the length. No backend here multiplies such weights: they
are unpacked in every run, so bytes fall and time does not. Limits: linears whose columns the group
divides; the cache needs a Hugging Face decoder of full attention, in eager (a note says so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime import bounded_cache
from paredown.runtime.forms_two_of_four import TwoOfFourLinear, pack_pairs
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
from paredown.techniques.quantize.common import Usage, dtype_name, matrix, paths, weighted_sites
from paredown.techniques.sparsify import pruners
from paredown.workload import Workload

CACHE = ":cache"
"""The site that stands for the model's cache."""

SHRINKS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of a group's range that are tried for its grid."""


@dataclass(frozen=True)
class AccLLM(Rewrite):
    """2-bit 2:4 weights, 8-bit rows, a bounded 4-bit cache (Liang et al. 2025)."""

    name: ClassVar[str] = "accllm"
    paper: ClassVar[str | None] = "accllm"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE, Touches.WEIGHT_VALUES, Touches.CACHE}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES})
    # Nothing runs faster by it, and two bits without training are risky: for recipes.
    maturity: ClassVar[Any] = "study"

    group_size: Annotated[int, Choice(64, 32, 128), "columns that share a grid"] = 64
    activations: Annotated[bool, "code each row of an input in 8 bits"] = True
    sinks: Annotated[int, Choice(4, 0), "first tokens that stay in the cache"] = 4
    window: Annotated[int, Choice(1024, 256, 2048), "latest tokens that stay in it"] = 1024
    cache_bits: Annotated[int, Choice(4, 0), "bits of a cached number (0: as it is)"] = 4

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """The paper's setting."""
        return {"on": {}}

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.group_size < 8 or self.group_size % 8:
            raise InputError(f"group_size must be a multiple of 8, got {self.group_size}")
        bounded_cache.why_not(None, self.window, self.sinks, self.cache_bits)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears ``path:weight``, and ``:cache`` where the run generates."""
        usage = Usage(workload, graph)

        def judge(kind: str, module: nn.Module) -> str | None:
            if kind != "linear":
                return "only linear layers take 2-bit weights"
            columns = matrix(module).shape[1]
            if columns % self.group_size:
                return f"group_size {self.group_size} does not divide its {columns} columns"
            return usage.why_not(module)

        found = weighted_sites(workload, judge)
        if workload.run != "generate":
            return found
        why = self._no_cache(workload.model)
        if why is None:
            return Sites((*found.ok, CACHE), found.refused, found.overrides)
        return Sites(found.ok, {**found.refused, CACHE: why}, found.overrides)

    def _no_cache(self, model: Any) -> str | None:
        return bounded_cache.why_not(model, self.window, self.sinks, self.cache_bits)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Prune and code every site's weight on the inputs that reach it."""
        found = [(n, p) for n, p in paths(workload, sites.ok) if n != CACHE]
        moments = covariances(workload, [p for _, p in found]) if found else {}
        tensors: dict[str, Tensor] = {}
        lost: dict[str, float] = {}
        for name, path in found:
            moment = moments.get(path)
            if moment is None or not bool(moment.isfinite().all()):
                raise NotApplicable(f"{self.name}: the inputs of {path} are not finite numbers")
            weight = matrix(workload.model.get_submodule(path)).float()
            parts = two_of_four(weight, moment, self.at(sites, name).group_size)
            for key, value in zip(("codes", "places", "low", "step"), parts, strict=True):
                tensors[f"{path}.{key}"] = value
            lost[path] = pruners.error(weight, dense(*parts), moment)
        return Decisions({"error": lost}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Shapes follow from the group size."""
        return Decisions({"error": {}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Swap each site for its packed form; give the model a bounded cache."""
        edit = Editor(workload)
        tensors = decisions.tensors
        for name, path in paths(workload, sites.ok):
            if name == CACHE:
                continue
            own, old = self.at(sites, name), edit.model.get_submodule(path)
            edit.swap(path, own._form(old, path, tensors))
        notes: list[str] = []
        if CACHE in sites.ok:
            settings = {"sinks": self.sinks, "window": self.window, "bits": self.cache_bits}
            edit.attach("", "bounded_cache", settings)
            notes.append("the cache is bounded where Python code runs the model: eager")
        lost = decisions.values["error"]
        if lost:
            worst = max(lost, key=lambda p: lost[p])
            notes.append(f"largest error of a layer's outputs {lost[worst]:.2%}, {worst}")
        return edit.change(self, sites.ok, decisions, notes=notes)

    def _form(self, old: Any, path: str, tensors: dict[str, Tensor]) -> TwoOfFourLinear:
        weight = matrix(old)
        rows, columns = weight.shape
        bias = dtype_name(old.bias)
        new = TwoOfFourLinear(columns, rows, self.group_size, self.activations, bias, weight.device)
        if f"{path}.codes" in tensors:
            packed = pack_pairs(tensors[f"{path}.codes"])
            new.weight = nn.Parameter(packed, requires_grad=False)
            new.places = pack_pairs(tensors[f"{path}.places"])
            new.low, new.step = tensors[f"{path}.low"], tensors[f"{path}.step"]
        if old.bias is not None:
            new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        return new


def two_of_four(
    weight: Tensor, moment: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(codes, places, low, step)`` of a weight ``(rows, columns)`` on inputs of this moment.

    Codes and places are uint8 ``(rows, columns / 2)``; least points and steps are float16
    ``(rows, columns / group)``. SparseGPT's mask, then optimal brain quantization under it.
    """
    rows, columns = weight.shape
    pruned = pruners.sparsegpt(weight, moment, 0.5, (2, 4))
    four = pruned.abs().reshape(rows, -1, 4).topk(2, -1).indices.sort(-1).values
    kept = torch.zeros(rows, columns // 4, 4, dtype=torch.bool).scatter(-1, four, True)
    kept = kept.reshape(rows, columns)
    w, root = weight.double().clone(), pruners.inverse_root(moment)[0]
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    low = torch.zeros(rows, columns // group, dtype=torch.float16)
    step = torch.zeros_like(low)
    for i in range(columns):
        g = i // group
        if i % group == 0:
            # The group as it is now: its grid holds while its columns are gone through.
            low[:, g], step[:, g] = grid(w[:, i : i + group], kept[:, i : i + group])
        a, b = low[:, g].double(), step[:, g].double()
        code = torch.round((w[:, i] - a) / b).clamp(0, 3)
        value = torch.where(kept[:, i], a + code * b, 0.0)
        codes[:, i] = code.to(torch.uint8)
        error = (w[:, i] - value) / root[i, i]
        w[:, i + 1 :] -= error[:, None] * root[i, i + 1 :]
    places = four.reshape(rows, -1).to(torch.uint8)
    chosen = codes.reshape(rows, -1, 4).gather(-1, four).reshape(rows, -1)
    return chosen, places, low, step


def grid(w: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """``(low, step)`` in float16 of the four even points with the least squared error of each
    row's kept weights, among the whole range and ranges shrunk to half of it.
    """
    low = w.masked_fill(~kept, torch.inf).amin(1)
    high = w.masked_fill(~kept, -torch.inf).amax(1)
    middle, half = (low + high) / 2, (high - low) / 2
    best = torch.full_like(low, torch.inf)
    found = torch.zeros(2, len(w), dtype=torch.float16)
    for share in SHRINKS:
        a = (middle - share * half).to(torch.float16)
        b = (2 * share * half / 3).clamp(min=1e-6).to(torch.float16)
        x, y = a.double()[:, None], b.double()[:, None]
        off = x + torch.round((w - x) / y).clamp(0, 3) * y - w
        error = (off.square() * kept).sum(1)
        found = torch.where(error < best, torch.stack([a, b]), found)
        best = torch.minimum(error, best)
    return found[0], found[1]


def dense(codes: Tensor, places: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """The float32 weight ``(rows, columns)`` that codes stand for."""
    from paredown.runtime.forms_two_of_four import dequantize_two_of_four

    packed = pack_pairs(codes), pack_pairs(places)
    return dequantize_two_of_four(*packed, low, step, torch.float32)
