"""Trained low rank: layers trained as products whose components are ordered, then cut.

Maestro (Horvath, Laskaridis, Rajput and Wang 2024, arXiv:2308.14929); official code
SamuelHorvath/Maestro-LoD. Every layer W starts as U V^T at full inner rank from its singular value
decomposition. A step trains the whole network and, in a second pass towards its own outputs, the
network with one layer cut to its first b components (ordered dropout, section 3.2); a lasso over
all suffixes of components (section 3.3) pushes trailing ones to zero, and ranks fall for good as
they get there. One training then serves any rank: `narrowed` cuts further without more of it.
On linear maps of white data this finds the singular value decomposition, for linear autoencoders
the principal components (section 4).

Deviations: AdamW under a cosine towards the original (`techniques.recover`; `task=1` is the paper's
own loss); the lasso is taken by its proximal step, which makes exact zeros, so no threshold is
needed, and its weight is in units of AdamW's steps (0.6 here; 0.005 and less there); in
training a layer is the product of its factors, which costs less than two layers at full
rank and gives the same gradients; ``pick="greedy"`` adds the losses of layers cut one at a time
instead of measuring each combination.
Cost law: a matrix of O x I at rank r costs r (O + I) instead of O I multiply-accumulates; a layer
whose rank saves nothing is multiplied back. Training costs two passes a step. Limits: those of
`low-rank`; where the lasso or ``greedy`` set a rank, `preview` shows an even share instead.
"""

from __future__ import annotations

import itertools
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
    limit,
    shape_of,
)
from paredown.techniques.factorize.covariance import covariances
from paredown.techniques.factorize.ordered import Ordered, OrderedDropout
from paredown.techniques.factorize.ranks import greedy
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.common import is_conv1d, matrix, paths
from paredown.techniques.recover import NORM_BATCHES, Plan, recalibrate, snapshot, train
from paredown.workload import Workload, share

PICKS = ("even", "greedy")


@dataclass(frozen=True)
class TrainedLowRank(Rewrite):
    """Layers as two thin ones, trained so that the cut-off components matter least (Maestro)."""

    name: ClassVar[str] = "trained-low-rank"
    paper: ClassVar[str | None] = "maestro-lod"
    family: ClassVar[str] = "factorize"
    stage: ClassVar[Stage] = Stage.RANK
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_SHAPE, Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.SHAPES, Lowers.TIME})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    share: Annotated[
        float, Choice(0.125, 0.25, 0.375, 0.5, 0.75), "share of the layers' weights that stays"
    ] = 0.5
    pick: Annotated[
        str, Choice(*PICKS), "the share in every layer, or over all by what cutting each loses"
    ] = "even"
    aware: Annotated[bool, "start from the least error on calibration inputs"] = False
    penalty: Annotated[float, Range(0.0, 2.0), "weight of the lasso that lowers ranks"] = 0.6
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data, of cuts and of dropout"] = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share must lie in (0, 1], got {self.share}")
        if self.pick not in PICKS:
            raise InputError(f"pick {self.pick!r}: one of {', '.join(PICKS)}")
        if self.penalty < 0:
            raise InputError(f"penalty must be at least 0, got {self.penalty}")
        self._plan()

    def _plan(self) -> Plan:
        return Plan(self.steps, self.lr, task=self.task, decay=0.0, seed=self.seed)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Every linear layer and plain convolution whose rank can fall below break-even."""
        lack = self.missing(workload) or without_gradient(graph)
        return factor_sites(self, workload, graph, lambda _: lack)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; its factors, the ranks picked and what else was trained are recorded."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        model = workload.own().model
        layers = ordered(workload, sites, self, model)
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        teacher = share(workload.model if workload.original is None else workload.original)

        def calls() -> Any:
            batches = itertools.islice(data.batches(), NORM_BATCHES)
            return ((inputs, {}) for inputs, _ in batches)

        if self.steps:
            beside = OrderedDropout(layers.values(), self.penalty, calls)
            values = train(
                model,
                teacher,
                data,
                self._plan(),
                evaluate=workload.evaluate,
                companion=beside,
            ).values()
        if self.pick == "greedy":
            for layer in layers.values():
                layer.limit = int(layer.rank)
            recalibrate(model, calls())
            for path, rank in greedy(model, layers, data, teacher, self.share).items():
                layers[path].limit = rank
        recalibrate(model, calls())
        before = snapshot(workload.model)
        tensors = {
            f"state.{k}": v
            for k, v in snapshot(model).items()
            if k in before and not torch.equal(v, before[k])
        }
        values["ranks"] = ranks = {}
        values["trained_ranks"] = {path: int(m.rank) for path, m in layers.items()}
        for path, layer in layers.items():
            weight: Any = workload.model.get_submodule(path).weight
            rank = ranks[path] = layer.eval().components()
            if rank < break_even(*shape_of(workload.model.get_submodule(path))):
                for name, value in zip(FACTORS, layer.kept(rank), strict=True):
                    tensors[f"{path}.{name}"] = value.to(weight.dtype)
            else:
                tensors[f"{path}.weight"] = layer(weight).detach().clone()
        return Decisions(values, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same share in every layer: what training changes of it cannot be known."""
        ranks: dict[str, int] = {}
        tensors: dict[str, Tensor] = {}
        for s, path in paths(workload, sites.ok):
            if fits(workload, path):
                module: Any = workload.model.get_submodule(path)
                rows, columns = shape_of(module)
                rank = ranks[path] = limit(self.at(sites, s).share, rows, columns)
                kind: Any = module.weight.dtype
                tensors[f"{path}.first"] = torch.empty(rank, columns, dtype=kind)
                tensors[f"{path}.second"] = torch.empty(rows, rank, dtype=kind)
        return Decisions({"ranks": ranks}, tensors)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Trained tensors where they were, each layer as its factors or their product."""
        editor = Editor(workload)
        v, tensors = decisions.values, decisions.tensors
        for name, value in tensors.items():
            if name.startswith("state."):
                path, _, own = name.removeprefix("state.").rpartition(".")
                editor.tensor(path, own, value, tied=True)
        renames: dict[str, tuple[str, ...]] = {}
        notes: list[str] = []
        for path, rank in v["ranks"].items():
            if f"{path}.weight" in tensors:
                editor.tensor(path, "weight", tensors[f"{path}.weight"])
                notes.append(f"{path}: whole again, rank {rank} would save nothing")
                continue
            factors_in(editor, path, *(tensors[f"{path}.{k}"] for k in FACTORS))
            renames[path] = (f"{path}.first", f"{path}.second")
            notes.append(f"{path}: rank {rank}")
        if "best_score" in v:
            notes.append(
                f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
                f"at step {v['best_step']}: {v['ended']}"
            )
        touched = [s for s, p in paths(workload, sites.ok) if p in v["ranks"]]
        return editor.change(self, touched, decisions, renames=renames, notes=notes)


def ordered(
    workload: Workload, sites: Sites, technique: TrainedLowRank, model: nn.Module
) -> dict[str, Ordered]:
    """Every site of ``model``, a copy of the workload's, parametrized: layer path -> its factors.

    A component is split evenly between its two factors, ``U sqrt(S)`` and ``sqrt(S) V^T``.
    """
    found = [(s, p) for s, p in paths(workload, sites.ok) if fits(workload, p)]
    if not found:
        raise NotApplicable(f"{technique.name} has no layer to split")
    wanted = [p for s, p in found if technique.at(sites, s).aware]
    inputs = covariances(workload, wanted) if wanted else {}
    out: dict[str, Ordered] = {}
    for s, path in found:
        layer: Any = model.get_submodule(path)
        w = matrix(layer).float().flatten(1)
        left, values, right = factors(w, inputs.get(path))
        root = values.sqrt()
        most = limit(technique.at(sites, s).share, *w.shape)
        whole = Ordered(root[:, None] * right, left * root, most, is_conv1d(layer))
        out[path] = whole.put_on(layer)
    return out
