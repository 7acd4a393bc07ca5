"""From a request to a search space: which techniques act on this network, where, with which
settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from paredown import registry
from paredown.errors import NotApplicable
from paredown.graph.graph import Graph
from paredown.paring.effort import Grant, fast_bf16
from paredown.paring.request import Request
from paredown.recipe import Recipe, Target
from paredown.search.goal import Goal, Limit
from paredown.search.space import Choice, Space
from paredown.technique import Lowers, Needs, Rewrite, Stage
from paredown.workload import Workload

RANKED = "static-int8"
"""The technique whose sites are ranked by sensitivity, so that some can be spared."""
SPARE = (0.0, 0.1, 0.25)
QUALITY_UNIT = 0.002
"""A quality limit missed by so much of the scale weighs like a cost missed by a factor of e: where
no candidate meets a budget, the nearest keeps the quality and misses the cost."""
NORM_BATCHES = 8
"""Batches for fresh batch-norm statistics: nearly free, and most of what a small cut loses."""


@dataclass
class Choices:
    """The techniques a search may use, and why the others were left out."""

    used: list[Choice]
    left_out: dict[str, str] = field(default_factory=dict)


def choices(request: Request, graph: Graph, granted: Grant | None) -> Choices:
    """Ask every technique where it acts; keep those that may, can and have what they need."""
    out = Choices([])
    for name, cls in registry.classes().items():
        why = _why_not(name, request)
        if why is not None:
            out.left_out[name] = why
            continue
        technique = cls()
        lack = technique.missing(request.workload)
        if lack is not None:
            out.left_out[name] = lack
            continue
        sites = technique.sites(request.workload, graph)
        if request.keep:
            sites = sites.only(["*"], [k for k in request.keep if _hits(k, sites.ok)])
        if not sites.ok:
            reasons = sorted(set(sites.refused.values()))
            out.left_out[name] = reasons[0] if reasons else "it has no site on this network"
            continue
        settings = cls.variants()
        if Needs.TRAINING in cls.needs:
            if granted is None:
                out.left_out[name] = "the effort does not buy enough training steps"
                continue
            # Few steps: the original's outputs teach more per step than labels do.
            trained = {
                "steps": granted.steps,
                "task": 0.0,
                "bf16": fast_bf16(),
                "channels_last": granted.channels_last,
                "norm_batches": NORM_BATCHES,
            }
            settings = {"statistics": {"steps": 0, "norm_batches": NORM_BATCHES}, "train": trained}
        out.used.append(Choice(cls, settings, sites, always=cls.stage == Stage.FOLD))
    return out


def _hits(pattern: str, sites: tuple[str, ...]) -> bool:
    from paredown.technique import matches

    return any(matches(s, pattern) for s in sites)


def _why_not(name: str, request: Request) -> str | None:
    cls = registry.technique(name)
    if name in request.without:
        return "left out by --without"
    # Folding is exact and recovery only follows a cut: --only is about what is lossy.
    lossy = cls.stage != Stage.FOLD and Needs.TRAINING not in cls.needs
    if request.only and name not in request.only and lossy:
        return "left out by --only"
    if not issubclass(cls, Rewrite):
        return f"a {cls.kind} is not searched yet: use it in a recipe"
    limited = {c.metric for c in request.budget}
    if (
        cls.lowers == frozenset({Lowers.MEMORY})
        and "memory" not in limited
        and name not in request.only
    ):
        return "it lowers memory alone, which the budget does not limit"
    if cls.maturity == "study":
        return "study: for its claim card only"
    if cls.maturity == "trial" and name not in request.only:
        return "trial: not searched unless named with --only"
    return None


SLOW_TO_COMPILE = "inductor"
COMPILES_S = 10.0
"""Seconds that inductor takes to compile one small network here; it stays out of short searches."""


def backends(request: Request, found: Choices) -> list[str]:
    """The backends worth the effort; one that was named is always used."""
    names = request.usable
    if len(names) > 1 and SLOW_TO_COMPILE in names and request.effort_s < 30 * COMPILES_S:
        found.left_out[SLOW_TO_COMPILE] = (
            f"compiling takes about {COMPILES_S:g} s a candidate, too much of an effort of "
            f"{request.effort_s:g} s; name it with --backend {SLOW_TO_COMPILE} or give more"
        )
        return [n for n in names if n != SLOW_TO_COMPILE]
    return names


def space(request: Request, found: Choices, ranking: Callable[[str], list[str]]) -> Space:
    """The space over the usable backends; ``ranking`` as in `Space`."""
    sites = next((len(c.sites.ok) for c in found.used if c.name == RANKED), 0)
    # On few sites two shares may spare the same number of them: one of the two is enough.
    spare = {round(s * sites): s for s in reversed(SPARE)}
    return Space(
        found.used,
        backends(request, found),
        spare=tuple(sorted(spare.values())),
        ranking=ranking,
        keep=request.keep,
    )


def target_of(workload: Workload) -> Target | None:
    """The recipe's target entry; None for a model that lives only in Python."""
    if workload.source is None:
        return None
    return Target(ref=workload.source.ref, sha256=workload.source.sha256)


def recipe_of(request: Request, backend: str) -> Recipe:
    """The empty recipe on one backend."""
    from paredown.recipe import Lower

    return Recipe(
        target=target_of(request.workload),
        lower=Lower(backend=backend, threads=request.threads),
        seed=request.seed,
    )


def goal(request: Request, baseline: dict[str, float]) -> Goal:
    """The constraints in absolute terms, given the baseline's value of every budgeted cost."""
    limits: list[Limit] = []
    for c in request.budget:
        value = c.value
        if c.unit == "x":
            if c.metric not in baseline:
                raise NotApplicable(f"{c.text!r}: the original's {c.metric} could not be measured")
            value *= baseline[c.metric]
        limits.append(Limit(c.metric, c.op, value, QUALITY_UNIT * (request.workload.scale or 1.0)))
    costs = [c.metric for c in request.budget.costs]
    objective = "latency" if "latency" in costs or not costs else costs[0]
    return Goal(tuple(limits), objective)
