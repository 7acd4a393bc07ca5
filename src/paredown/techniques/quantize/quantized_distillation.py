"""Quantized distillation: train weights that are codes, towards the original's outputs.

Polino, Pascanu and Alistarh 2018, arXiv:1802.05668; official code antspy/quantized_distillation.
``weights`` (their section 3): before every step the weights are projected on evenly spaced points
of their bucket, the gradient at the projection moves the float copy, and the projection is what
remains. ``points`` (section 4): weights stay, and the points of each tensor, first quantiles of its
scaled values, are learned, each from the weights nearest to it. The student's loss is 0.7 of the
softened divergence from the original (T = 2) and 0.3 of the task's. A smaller student is cut first:
the recipe's earlier steps make it, the teacher is the network as it was given.

After Ding et al. 2025 (arXiv:2501.06218) ``distance=topkld`` takes TopKLD (`distill.topkld`) in the
softened divergence's place, for networks that choose from a vocabulary, and ``grid=float`` the
numbers of a small float as points.

Deviations: AdamW under a cosine (`techniques.recover`) where they have SGD; rounding is to nearest
alone; the same bits for all tensors; norms, biases and layers left out stay floats and are trained
(with ``points`` they rest); no Huffman coding.
Cost law: a weight takes ``bits + 64 / bucket`` bits and the points of its tensor; no backend here
multiplies such codes, so they are unpacked in every run and time is not saved. Limits: linears and
zero-padded convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime.forms_codebook import CodebookConv, CodebookLinear, pack
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Range,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.distill.topkld import towards
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.code_points import Points, Projected
from paredown.techniques.quantize.common import (
    Usage,
    dtype_name,
    is_conv1d,
    paths,
    weighted_sites,
)
from paredown.techniques.recover import Plan, snapshot, train
from paredown.workload import Workload, share

METHODS = ("weights", "points")
DISTANCES = ("softened", "topkld")
GRIDS = ("even", "float")


@dataclass(frozen=True)
class QuantizedDistillation(Rewrite):
    """Weights or their points trained as codes towards the original (Polino et al. 2018)."""

    name: ClassVar[str] = "quantized-distillation"
    paper: ClassVar[str | None] = "quantized-distillation"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_DTYPE, Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    bits: Annotated[int, Choice(4, 2, 3, 8), "bits of a weight"] = 4
    method: Annotated[str, Choice(*METHODS), "what is trained: the weights, or their points"] = (
        "weights"
    )
    bucket: Annotated[int, Choice(256, 64), "values that share a least value and a span"] = 256
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.3, 1.0), "weight of the data's own loss"] = 0.3
    seed: Annotated[int, "order of data and dropout"] = 0
    distance: Annotated[str, Choice(*DISTANCES), "divergence from the original"] = "softened"
    top: Annotated[int, "topkld: most probable outputs that are taken in reverse"] = 1
    grid: Annotated[str, Choice(*GRIDS), "points of trained weights: evenly spaced, or floats"] = (
        "even"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.bucket < 2:
            raise InputError("bits must be 1 to 8, bucket at least 2")
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r}: one of {', '.join(METHODS)}")
        if self.distance not in DISTANCES or self.top < 0:
            raise InputError(f"distance is one of {', '.join(DISTANCES)}, top at least 0")
        if self.grid not in GRIDS or (self.grid == "float" and self.bits < 2):
            raise InputError(f"grid is one of {', '.join(GRIDS)}, and a float has 2 bits or more")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, temperature=2.0, task=self.task, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and zero-padded convolutions whose codes take less, ``path:weight``."""
        usage = Usage(workload, graph)
        lack = self.missing(workload) or without_gradient(graph)

        def judge(kind: str, module: Any) -> str | None:
            if kind not in ("linear", "conv") or is_conv1d(module):
                return "only linear layers and convolutions are trained as codes"
            if getattr(module, "padding_mode", "zeros") != "zeros":
                return f"padding_mode {module.padding_mode!r} is not zero padding"
            why = usage.why_not(module)
            if why is not None:
                return why
            values = module.weight.numel()
            tables = 4 * 2**self.bits + 8 * -(-values // self.bucket)
            if values * self.bits / 8 + tables >= values * module.weight.element_size():
                return f"its {values} values take less than their codes and tables"
            return lack

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; its codes, tables and whatever else was trained are the decision."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        model = workload.own().model
        at = paths(workload, sites.ok)
        if self.method == "points":
            model.requires_grad_(False)
        for name, path in at:
            own, layer = self.at(sites, name), model.get_submodule(path)
            weight: Any = layer.weight
            to = Projected(own.bits, own.bucket, own.grid)
            if self.method == "points":
                to = Points(own.bits, own.bucket, weight.detach())
            parametrize.register_parametrization(layer, "weight", to)
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            if self.distance == "topkld":
                data, teacher = towards(data, teacher, self.top, self.task), None
            done = train(model, teacher, data, self._plan(), evaluate=workload.evaluate)
            values = done.values()
        before = snapshot(workload.model)
        tensors = {
            f"state.{k}": v
            for k, v in snapshot(model).items()
            if k in before and not torch.equal(v, before[k])
        }
        for _, path in at:
            layer: Any = model.get_submodule(path)
            to = layer.parametrizations.weight[0]
            found = to.tables(layer.parametrizations.weight.original.detach())
            for name, value in zip(("codes", "points", "span", "low"), found, strict=True):
                tensors[f"{path}.{name}"] = value
        return Decisions(values, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Shapes follow from bits and bucket."""
        return Decisions({"steps": self.steps})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Trained floats where they were, sites as forms over their codes."""
        edit = Editor(workload)
        tensors = decisions.tensors
        for name, value in tensors.items():
            if name.startswith("state."):
                path, _, own = name.removeprefix("state.").rpartition(".")
                edit.tensor(path, own, value, tied=True)
        for name, path in paths(workload, sites.ok):
            knobs, old = self.at(sites, name), edit.model.get_submodule(path)
            new = coded(old, knobs.bits, knobs.bucket)
            if f"{path}.codes" in tensors:
                packed = pack(tensors[f"{path}.codes"], knobs.bits)
                new.weight = nn.Parameter(packed, requires_grad=False)
                for table in ("points", "span", "low"):
                    setattr(new, table, tensors[f"{path}.{table}"])
            edit.swap(path, new)
        v = decisions.values
        notes = (
            [
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            ]
            if "best_score" in v
            else []
        )
        return edit.change(self, sites.ok, decisions, notes=notes)


def coded(old: Any, bits: int, bucket: int) -> CodebookLinear | CodebookConv:
    """The form of a float linear or convolution, its codes still to be filled in."""
    shape, bias, device = tuple(old.weight.shape), dtype_name(old.bias), old.weight.device
    if len(shape) == 2:
        new: Any = CodebookLinear(shape, bits, bucket, bias, device)
    else:
        geometry = (old.stride, old.padding, old.dilation, old.groups)
        new = CodebookConv(shape, *geometry, bits, bucket, bias, device)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
    return new
