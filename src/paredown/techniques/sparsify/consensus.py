"""One training that finds its own sub-network: gates on channels, heads and features, polarised
until all inputs agree, then cut out with all that depends on them (Consensus Sub-Network, Zhi et
al. 2023, arXiv:2302.10798). Gates stand in `gates`.

The loss of training has two more terms: ``g (1 - g)`` of the share g of a batch's inputs that open
a unit, and the squared gap between what stays open and what is asked for. At the end the units that
the consensus keeps stay, gates are gone, batch norms get fresh statistics; nothing is fine-tuned.

Cost law: that of `structured`; training costs one run, its gates a pooling and a thin linear per
group.
Deviations: gates stand on dependency groups (hidden channels, heads, features) of any network, not
on whole residual blocks; training starts from the network as it is and distils from the original
(`recover.Plan`; ``task=1`` is the paper's plain loss); polarisation is ramped up between a tenth
and a half of the steps. With ``scope="group"`` every group keeps exactly its share, the units that
are open most often; ``global``, closer to the paper, keeps whatever is open more often than not,
and `preview` shows the even share instead. Limits: those of `structured-pruning`, and groups that
some operator reads without a linear or a convolution are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.dependency import Dependencies, Group
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
from paredown.techniques.gradients import untrainable
from paredown.techniques.recover import Plan, fresh_norms, snapshot, train
from paredown.techniques.sparsify import gates
from paredown.techniques.sparsify.structured import StructuredPruning, cut, original, resolved
from paredown.workload import Workload, share

SCOPES = ("group", "global")


@dataclass(frozen=True)
class Consensus(Rewrite):
    """Train under polarised gates, then cut what they agree to shut (Zhi et al. 2023)."""

    name: ClassVar[str] = "consensus"
    paper: ClassVar[str | None] = "consensus-subnet"
    family: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.TRAINING})
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.STRUCTURE, Touches.WEIGHT_SHAPE, Touches.WEIGHT_VALUES}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.SHAPES, Lowers.TIME})
    # The search takes whatever trains for a recovery after cuts: this is for recipes.
    maturity: ClassVar[Any] = "study"

    share: Annotated[float, Choice(0.25, 0.3, 0.5, 0.7), "share of units cut"] = 0.5
    scope: Annotated[
        str, Choice(*SCOPES), "the share in every group, or over all as the gates settle it"
    ] = "group"
    polarise: Annotated[float, "weight of the polarisation of gates"] = 2.0
    budget: Annotated[float, "weight of the squared gap to the share"] = 8.0
    round_to: Annotated[int, Choice(1, 8), "units stay a multiple of this where they can"] = 1
    steps: Annotated[int, Choice(100, 300, 1000), "training steps at most"] = 300
    lr: Annotated[float, Range(1e-5, 1e-2, log=True), "peak learning rate"] = 1e-3
    task: Annotated[float, Choice(0.0, 0.5, 1.0), "weight of the data's own loss"] = 0.5
    seed: Annotated[int, "order of data, first gates and dropout"] = 0

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.share < 1:
            raise InputError(f"share must lie in (0, 1), got {self.share}")
        if self.scope not in SCOPES:
            raise InputError(f"scope {self.scope!r}: one of {', '.join(SCOPES)}")
        if self.polarise < 0 or self.budget < 0:
            raise InputError("polarise and budget must be at least 0")
        if self.steps < 1:
            raise InputError("steps must be at least 1: gates are found in training")
        self._plan()
        self._cutter()

    def _plan(self) -> Plan:
        # Before the end the gates have not agreed yet: no earlier state is a better one.
        return Plan(self.steps, self.lr, task=self.task, checks=1, seed=self.seed, keep_best=False)

    def _cutter(self) -> StructuredPruning:
        return StructuredPruning(share=self.share, round_to=self.round_to)

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """The groups of `structured-pruning` on which gates can stand."""
        lack = self.missing(workload)
        if lack is not None:
            return Sites((), {":units": lack})
        if (why := untrainable(workload, graph)) is not None:
            return Sites((), {":units": why})
        found = self._cutter().sites(workload, graph)
        by_name = {original(workload, g.site): g for g in Dependencies.of(graph).groups}
        refused = dict(found.refused)
        for site in found.ok:
            why = gates.why_not(workload.model, by_name[site])
            if why is not None:
                refused[site] = why
        return Sites(tuple(s for s in found.ok if s not in refused), refused)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Train a gated copy; its weights and the units that the consensus keeps are recorded."""
        data = workload.training
        if data is None:
            raise NotApplicable(f"{self.name} needs training data")
        deps = Dependencies.of(capture(workload))
        groups = self._cutter().chosen(workload, deps, sites)
        model = workload.own().model
        teacher = share(workload.model if workload.original is None else workload.original)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            gated = self._gates(workload, deps.graph, groups, sites).put_on(model)
        done = train(
            model, teacher, data, self._plan(), evaluate=workload.evaluate, companion=gated
        )
        if done.best_step != done.steps:
            raise NotApplicable(f"{self.name}: {done.ended}: no sub-network was found")
        fresh_norms(model, data)
        gated.take_off()
        kept = {
            g.site: [int(u) for u in gated.kept(i)]
            for i, g in enumerate(groups)
            if len(gated.kept(i)) < g.size
        }
        if not kept:
            raise NotApplicable(f"{self.name}: the gates agreed to cut nothing")
        before = snapshot(workload.model)
        trained = {k: t for k, t in snapshot(model).items() if not torch.equal(t, before[k])}
        values = resolved(workload, deps, groups, kept).values
        return Decisions({**values, **done.values(), "doubt": gated.doubt()}, trained)

    def _gates(
        self, workload: Workload, graph: Graph, groups: list[Group], sites: Sites
    ) -> gates.Gates:
        at: dict[str, Any] = {g.site: self.at(sites, original(workload, g.site)) for g in groups}
        counts = {g.site: at[g.site]._cutter().count(g) for g in groups}
        work = [max(1, _work(graph, g)) for g in groups]
        return gates.Gates(
            workload.model,
            groups,
            work,
            share=self.share,
            counts=counts if self.scope == "group" else None,
            polarise=self.polarise,
            budget=self.budget,
            steps=self.steps,
        )

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """An even share of the first units of every group."""
        return self._cutter().assume(workload, graph, sites)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Put the trained tensors in, then cut as `structured-pruning` does."""
        editor = Editor(workload)
        for name, value in decisions.tensors.items():
            path, _, own = name.rpartition(".")
            editor.tensor(path, own, value, tied=True)
        cut(editor, decisions)
        v = decisions.values
        kept, of = v["kept"], v["of"]
        left, whole = sum(map(len, kept.values())), sum(of[s] for s in kept)
        notes = [f"{len(kept)} groups cut: {left} of {whole} units kept"]
        if "doubt" in v:
            notes.append(f"{v['steps']} steps; largest doubt g (1 - g) of a gate {v['doubt']:.2g}")
        return editor.change(self, kept, decisions, notes=notes)


def _work(graph: Graph, group: Group) -> int:
    """Multiply-accumulates of the layers that make or read a group's units."""
    modules = {m.module for m in group.members}
    return sum(n.macs or 0 for n in graph.nodes if n.module in modules)
