"""Binary layers whose channels lie close together, few bits along a tree (MST-compression).

Vo et al. 2023, "MST-compression: compressing and accelerating binary neural networks with minimum
spanning tree", arXiv:2308.13735. A channel is another one but for the inputs in which their signs
differ (eq. 3), so a layer costs ``n`` bit products for one channel and the differences along the
edges of a minimum spanning tree for the others; training adds ``strength`` times the distances of
all channels to a centre. Signs of weights and inputs with a scale for each channel: XNOR-Net
(Rastegari et al. 2016, arXiv:1603.05279).

Deviations: the network is the user's and is trained on from its floats towards the original, not
from scratch; an input channel has a threshold of its own (ReActNet), since inputs after a ReLU are
never negative; scales and offsets are trained; one centre for each layer, the majority of its
channels' signs (more centres make trees longer: the paper's table A1); padding counts as +1.
Cost law: a weight takes a bit as it is held and run (XNOR and popcount on packed words, exact
integers), and in eager and inductor a layer takes a half to an eighth of its float32 time; in a
file it takes ``n`` bits and its differences' codes. Random signs of 128 x 576 already need 2.2
times fewer bit products than all. The order of the tree is not run: on a CPU it pays only in bit
slices and for short trees of wide layers (`runtime.binary.Along`). Limits: linears and convolutions
without groups; the first and the last layer stay as they are unless ``ends``; signs cost accuracy,
so training is long and the search does not choose it: it is for recipes. OpenVINO and ONNX have no
operator for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime import sign_code
from paredown.runtime.binary_tree import spanning_tree
from paredown.runtime.forms_binary import BinaryConv, BinaryLinear
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
from paredown.techniques.gradients import without_gradient
from paredown.techniques.quantize.binary_training import Emulated, TreeTerm, input_moments
from paredown.techniques.quantize.common import Usage, matrix, paths, weighted_sites
from paredown.techniques.recover import Plan, snapshot, train
from paredown.workload import Workload, share


@dataclass(frozen=True)
class MSTBNN(Rewrite):
    """Signs for weights and inputs, trained towards short spanning trees (Vo et al. 2023)."""

    name: ClassVar[str] = "mst-bnn"
    paper: ClassVar[str | None] = "mst-bnn"
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.NUMERIC
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE, Touches.WEIGHT_VALUES}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    # One bit on both sides costs accuracy and a long training: for recipes.
    maturity: ClassVar[Any] = "study"

    strength: Annotated[
        float, Choice(2e-5, 0.0, 5e-6, 1e-4), "weight of the distances to the centre (lambda)"
    ] = 2e-5
    ends: Annotated[bool, "the first and the last layer too"] = False
    steps: Annotated[int, Choice(1000, 300, 3000), "training steps at most"] = 1000
    # A sign changes only once its float has crossed zero: small rates change none.
    lr: Annotated[float, Range(1e-5, 3e-2, log=True), "peak learning rate"] = 1e-2
    task: Annotated[float, Choice(0.5, 0.0, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data and dropout"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if self.strength < 0:
            raise InputError(f"strength must be at least 0, got {self.strength}")
        self._plan()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """With the term and without it."""
        return {"on": {}, "without the term": {"strength": 0.0}}

    def _plan(self) -> Plan:
        # The score knows nothing of the trees: the last state is kept, not the best one.
        return Plan(self.steps, self.lr, task=self.task, decay=0.0, seed=self.seed, keep_best=False)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears and zero-padded convolutions without groups, ``path:weight``."""
        usage = Usage(workload, graph)
        lack = self.missing(workload) or without_gradient(graph)
        products = [n for n in graph.nodes if n.macs]
        first, last = (
            [workload.model.get_submodule(products[i].module) for i in (0, -1)]
            if products
            else (None, None)
        )

        def judge(kind: str, module: Any) -> str | None:
            if kind not in ("linear", "conv"):
                return "only linears and convolutions have a binary form"
            if getattr(module, "groups", 1) != 1:
                return "a convolution in groups has no binary form"
            if getattr(module, "padding_mode", "zeros") != "zeros":
                return f"padding_mode {module.padding_mode!r} is not zero padding"
            if not self.ends and (module is first or module is last):
                which = "first" if module is first else "last"
                return f"the {which} layer stays as it is (ends=true takes it too)"
            return usage.why_not(module) or lack

        return weighted_sites(workload, judge)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a copy; signs, scales, thresholds and other trained tensors are the decision."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        at = paths(workload, sites.ok)
        seen = input_moments(workload, [p for _, p in at])
        model = workload.own().model
        emulated: dict[str, Emulated] = {}
        for name, path in at:
            if not seen[path].count:
                raise InputError(f"{name}: no calibration input reaches it; leave the site out")
            emulated[path] = Emulated(model.get_submodule(path), seen[path])
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, emulated[path])
        values: dict[str, Any] = {"steps": 0, "ended": "no steps asked"}
        if self.steps:
            teacher = share(workload.model if workload.original is None else workload.original)
            term = TreeTerm(list(emulated.values()), self.strength) if self.strength else None
            done = train(
                model, teacher, data, self._plan(), evaluate=workload.evaluate, companion=term
            )
            values = done.values()
        before = snapshot(workload.model)
        tensors = {
            f"state.{k}": v
            for k, v in snapshot(model).items()
            if k in before and not before[k].equal(v)
        }
        counts: dict[str, list[int]] = {}
        for path, layer in emulated.items():
            held = binary(layer.layer[0])
            held.fill(layer.weight)
            tensors[f"{path}.signs"] = held.signs.data
            for own in ("gain", "offset", "threshold"):
                tensors[f"{path}.{own}"] = getattr(layer, own).detach().clone()
            if len(layer.weight) <= sign_code.MOST:
                tree = spanning_tree(layer.weight.detach().numpy())
                counts[path] = [tree.bit_ops, tree.inputs * len(tree.parent), tree.depth]
        return Decisions({**values, "trees": counts}, tensors)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Shapes follow from the layers."""
        return Decisions({"steps": self.steps, "trees": {}})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Trained floats where they were, sites as forms over their signs."""
        edit = Editor(workload)
        tensors = decisions.tensors
        for name, value in tensors.items():
            if name.startswith("state."):
                path, _, own = name.removeprefix("state.").rpartition(".")
                edit.tensor(path, own, value, tied=True)
        for _, path in paths(workload, sites.ok):
            new = binary(edit.model.get_submodule(path))
            if f"{path}.signs" in tensors:
                new.signs = nn.Parameter(tensors[f"{path}.signs"], requires_grad=False)
                for own in ("gain", "offset", "threshold"):
                    setattr(new, own, tensors[f"{path}.{own}"])
            edit.swap(path, new)
        return edit.change(self, sites.ok, decisions, notes=_notes(decisions.values))


def binary(old: Any) -> BinaryLinear | BinaryConv:
    """The form of a float linear or convolution, its signs and vectors still to be filled in."""
    weight: Tensor = matrix(old)
    if weight.ndim == 2:
        return BinaryLinear(tuple(weight.shape), weight.device)
    geometry = (old.stride, old.padding, old.dilation)
    return BinaryConv(tuple(weight.shape), *geometry, weight.device)


def _notes(v: dict[str, Any]) -> list[str]:
    trees: dict[str, list[int]] = v["trees"]
    notes: list[str] = []
    if trees:
        along, whole, deepest = (
            sum(t[0] for t in trees.values()),
            sum(t[1] for t in trees.values()),
            max(t[2] for t in trees.values()),
        )
        notes.append(
            f"along spanning trees {whole / along:.2f}x fewer bit products at one position of each "
            f"layer, at most {deepest} channels behind one another"
        )
    if "best_score" in v:
        notes.append(
            f"{v['steps']} steps, score {v['first_score']:.4g} -> {v['best_score']:.4g} "
            f"at step {v['best_step']}: {v['ended']}"
        )
    return notes
