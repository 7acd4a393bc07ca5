"""Structured pruning: whole channels, heads and features leave the network, together with all that
depends on them (Fang et al. 2023, arXiv:2301.12900; importance per `importance`).

Cost law: cutting a share s of a group removes s of the parameters and MACs of the layers that make
it and of those that read it; between two cut groups (1 - s1)(1 - s2) of a layer remains.

Deviations: groups come from symbolic axes of the captured run instead of a module graph; a cut that
cannot be verified by capturing the cut model is refused with its reason instead of skipped in
silence. Limits: attention keeps its head size; grouped convolutions keep their number of groups;
sizes that the model's code holds outside plain attributes cannot be changed, and their groups are
refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.dependency import Cut, Dependencies, Group
from paredown.graph.graph import Graph
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.sparsify.attributes import cut_tensors, settle
from paredown.techniques.sparsify.importance import scores
from paredown.workload import Workload


@dataclass(frozen=True)
class StructuredPruning(Rewrite):
    """Cut channels, heads and features in dependency groups (Fang et al. 2023,
    arXiv:2301.12900).
    """

    name: ClassVar[str] = "structured-pruning"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.STRUCTURE, Touches.WEIGHT_SHAPE})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.SHAPES, Lowers.TIME})
    maturity: ClassVar[Any] = "stable"

    share: Annotated[float, Choice(0.125, 0.25, 0.375, 0.5, 0.625), "share of units cut"] = 0.25
    importance: Annotated[
        str, Choice("magnitude", "taylor", "activation"), "how units are ranked"
    ] = "magnitude"
    scope: Annotated[
        str, Choice("group", "global"), "equal share per group, or ranked over all"
    ] = "group"
    round_to: Annotated[int, Choice(1, 8), "channels stay a multiple of this where they can"] = 8
    streams: Annotated[bool, Choice(False, True), "also cut residual streams"] = False

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Shares alone: what is cut matters more than how it was ranked."""
        return {f"{s:g}": {"share": s} for s in (0.125, 0.25, 0.375, 0.5, 0.625)}

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 <= self.share < 1:
            raise InputError(f"share must lie in [0, 1), got {self.share}")
        if self.importance not in ("magnitude", "taylor", "activation"):
            raise InputError(f"importance {self.importance!r}: magnitude, taylor or activation")
        if self.scope not in ("group", "global"):
            raise InputError(f"scope {self.scope!r}: group or global")
        if self.round_to < 1:
            raise InputError(f"round_to must be at least 1, got {self.round_to}")

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Every group of the network; refused where frozen, too small, or where cutting breaks
        it.
        """
        deps = Dependencies.of(graph)
        ok: list[Group] = []
        refused: dict[str, str] = {}
        for g in deps.groups:
            reason = self._refuse(g)
            if reason is None:
                ok.append(g)
            else:
                refused[original(workload, g.site)] = reason
        good, broken = _runnable(deps, ok, {g.site: self.count(g) for g in ok})
        refused |= {original(workload, s): why for s, why in broken.items()}
        return Sites(tuple(original(workload, g.site) for g in good), refused)

    def _refuse(self, g: Group) -> str | None:
        if g.reason is not None:
            return g.reason
        if g.stream and not self.streams:
            return "residual stream: cut only with streams=true"
        if self.share > 0 and self.count(g) == g.size:
            return f"{self.share:g} of {g.size} units rounds to none"
        return None

    def count(self, g: Group) -> int:
        """Units kept at the asked share; raises nothing, equals ``size`` when none can go."""
        keep = max(1, round(g.size * (1 - self.share)))
        width = max((int((g.units(m) == 0).sum()) for m in g.members if m.role == "out"), default=1)
        step = self.round_to // int(np.gcd(self.round_to, width))
        if g.heads or g.size < 2 * step or self.share == 0:
            return keep
        nearest = max(step, step * round(keep / step))
        return nearest if nearest < g.size else g.size - (g.size % step or step)

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Rank the units and keep the most important; every index is recorded."""
        deps = Dependencies.of(capture(workload))
        groups = self.chosen(workload, deps, sites)
        return self._resolve(
            workload, deps, sites, groups, scores(workload, groups, self.importance)
        )

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same counts with the first units kept (under ``global`` scope, every group alike)."""
        deps = Dependencies.of(graph)
        groups = self.chosen(workload, deps, sites)
        even = {g.site: np.arange(g.size, 0, -1.0) for g in groups}
        plain = replace(self, scope="group")
        return plain._resolve(workload, deps, sites, groups, even, check=False)

    def chosen(self, workload: Workload, deps: Dependencies, sites: Sites) -> list[Group]:
        """The groups that sites name; raises ``NotApplicable`` for one that is none any more."""
        by_name = {original(workload, g.site): g for g in deps.groups}
        missing = [s for s in sites.ok if s not in by_name]
        if missing:
            raise NotApplicable(
                f"{self.name}: {missing[0]} is no group of {workload.name} any more"
            )
        fixed = next((s for s in sites.ok if by_name[s].reason is not None), None)
        if fixed is not None:
            raise NotApplicable(f"{self.name}: {fixed}: {by_name[fixed].reason}")
        return [by_name[s] for s in sites.ok]

    def _resolve(
        self,
        workload: Workload,
        deps: Dependencies,
        sites: Sites,
        groups: list[Group],
        score: dict[str, np.ndarray],
        check: bool = True,
    ) -> Decisions:
        at: dict[str, StructuredPruning] = {}
        for g in groups:
            own = self.at(sites, original(workload, g.site))
            assert isinstance(own, StructuredPruning)
            at[g.site] = own
        counts = {g.site: at[g.site].count(g) for g in groups}
        if self.scope == "global":
            counts = self._global_counts(groups, score, counts)
        kept: dict[str, list[int]] = {}
        for g in groups:
            best = np.argsort(-score[g.site], kind="stable")[: counts[g.site]]
            if counts[g.site] == g.size and at[g.site].share > 0 and self.scope == "group":
                raise NotApplicable(
                    f"{g.site}: {at[g.site].share:g} of {g.size} units rounds to none"
                )
            if counts[g.site] < g.size:
                kept[g.site] = sorted(int(i) for i in best)
        return resolved(workload, deps, groups, kept, check=check)

    def _global_counts(
        self, groups: list[Group], score: dict[str, np.ndarray], even: dict[str, int]
    ) -> dict[str, int]:
        """Counts that cut as many units in all, the least important of all groups first.

        A group keeps at least a quarter of its even count, and multiples of ``round_to``.
        """
        budget = sum(g.size - even[g.site] for g in groups)
        ranked = sorted((float(v), g.site) for g in groups for v in np.sort(score[g.site]))
        left = {g.site: g.size for g in groups}
        floor = {g.site: max(1, even[g.site] // 4) for g in groups}
        for _, site in ranked:
            if budget == 0:
                break
            if left[site] > floor[site]:
                left[site] -= 1
                budget -= 1
        return {
            g.site: replace(self, share=1 - left[g.site] / g.size).count(g)
            if left[g.site] < g.size
            else g.size
            for g in groups
        }

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Slice the tensors and set the attributes that the decisions list."""
        editor = Editor(workload)
        cut(editor, decisions)
        kept, of = decisions.values["kept"], decisions.values["of"]
        left, whole = sum(map(len, kept.values())), sum(of[s] for s in kept)
        notes = [f"{len(kept)} groups cut: {left} of {whole} units kept"]
        return editor.change(self, kept, decisions, notes=notes)


def resolved(
    workload: Workload,
    deps: Dependencies,
    groups: list[Group],
    kept: dict[str, list[int]],
    *,
    check: bool = True,
) -> Decisions:
    """What `rewrite` needs to leave these units of each group; groups not in ``kept`` stay."""
    attrs = settle(deps, kept, check=check) if kept else []
    # Many tensors keep the same positions: each list is written down once.
    tables: dict[tuple[int, ...], int] = {}
    cuts = [(c.name, c.dim, tables.setdefault(c.keep, len(tables))) for c in deps.cuts(kept)]
    return Decisions(
        {
            "kept": {original(workload, s): k for s, k in kept.items()},
            "of": {original(workload, g.site): g.size for g in groups},
            "positions": [list(t) for t in tables],
            "cuts": [list(c) for c in cuts],
            "attrs": [[a.path, a.name, _listed(a.value)] for a in attrs],
        }
    )


def cut(editor: Editor, decisions: Decisions) -> None:
    """Slice the tensors and set the attributes that `resolved` lists."""
    keep = [tuple(k) for k in decisions.values["positions"]]
    cut_tensors(editor, [Cut(n, d, keep[k]) for n, d, k in decisions.values["cuts"]])
    for path, name, value in decisions.values["attrs"]:
        editor.attr(path, name, tuple(value) if isinstance(value, list) else value)


def _runnable(
    deps: Dependencies, groups: list[Group], counts: dict[str, int]
) -> tuple[list[Group], dict[str, str]]:
    """The groups whose cut model runs with the predicted shapes, and why the others do not.

    All at once first; on failure each kind of group (same site but for its numbers) alone.
    """
    kept = {g.site: list(range(counts[g.site])) for g in groups if counts[g.site] < g.size}
    if not kept:
        return groups, {}
    try:
        settle(deps, kept)
    except NotApplicable:
        pass
    else:
        return groups, {}
    kinds: dict[str, list[Group]] = defaultdict(list)
    for g in groups:
        kinds[re.sub(r"\d+", "*", g.site)].append(g)
    good: list[Group] = []
    refused: dict[str, str] = {}
    for kind in kinds.values():
        trial = {g.site: kept[g.site] for g in (*good, *kind) if g.site in kept}
        try:
            settle(deps, trial)
        except NotApplicable as e:
            refused |= {g.site: str(e) for g in kind}
        else:
            good += kind
    return good, refused


def original(workload: Workload, site: str) -> str:
    """A site in the original model's names; parts of a split layer keep their own."""
    path, _, role = site.rpartition(":")
    for original, now in workload.aliases.items():
        if now == (path,):
            return f"{original}:{role}"
    return site


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
